"""Integer weights as they lie in memory: one byte each, or two 4-bit ones to a byte."""

from dataclasses import InitVar, dataclass

import torch
from jaxtyping import Float, Float32, Int8, Int32, UInt8
from torch import Tensor

from psaq_kernels.levels import check_bits

NIBBLE_BITS = 4
GROUPS = (32, 64, 128)
"""Inputs that may share a scale."""


def pack_nibbles(integers: Int8[Tensor, "outputs inputs"]) -> UInt8[Tensor, "outputs bytes"]:
    """Two 4-bit integers to a byte, bytes = ⌈inputs/2⌉.

    Byte j of a row holds input j in its low and input ``bytes + j`` in its high half, in two's complement; an odd
    row is padded with a zero. So both halves are contiguous runs of inputs, and a kernel multiplies each by its
    own run of activations without interleaving anything.

    Raises:
        ValueError: an integer is outside [−8, 7].
    """
    if integers.numel() and not -8 <= int(integers.min()) <= int(integers.max()) <= 7:
        raise ValueError("integers must lie in [-8, 7] to be packed in 4 bits")
    columns = integers.shape[1]
    padded = torch.nn.functional.pad(integers, (0, columns % 2)).view(torch.uint8)
    low, high = padded.chunk(2, dim=1)
    return (low & 0x0F) | (high << NIBBLE_BITS)


def unpack_nibbles(packed: UInt8[Tensor, "outputs bytes"], inputs: int) -> Int8[Tensor, "outputs inputs"]:
    """The integers that `pack_nibbles` packed.

    Raises:
        ValueError: ``packed`` is not ⌈inputs/2⌉ bytes long.
    """
    if packed.shape[1] != packed_length(inputs):
        raise ValueError(f"packed has {packed.shape[1]} bytes to a row; {inputs} inputs take {packed_length(inputs)}")
    signed = packed.view(torch.int8)
    low = (signed << NIBBLE_BITS) >> NIBBLE_BITS
    high = (signed >> NIBBLE_BITS)[:, : inputs - packed.shape[1]]
    return torch.cat((low, high), dim=1)


def packed_length(inputs: int) -> int:
    """Bytes to a row of 4-bit weights."""
    return (inputs + 1) // 2


def pack_groups(integers: Int8[Tensor, "outputs inputs"], group: int) -> UInt8[Tensor, "outputs bytes"]:
    """As `pack_nibbles`, group by group, the last one filled up with zeros: all of a group lies in a run of bytes."""
    whole = torch.nn.functional.pad(integers, (0, -integers.shape[1] % group))
    return pack_nibbles(whole.reshape(-1, group)).view(len(integers), -1)


def unpack_groups(packed: UInt8[Tensor, "outputs bytes"], inputs: int, group: int) -> Int8[Tensor, "outputs inputs"]:
    """The integers that `pack_groups` packed."""
    return unpack_nibbles(packed.reshape(-1, group // 2), group).view(len(packed), -1)[:, :inputs].contiguous()


def row_length(inputs: int, packed: bool, group: int | None) -> int:
    """Bytes to a row of a weight."""
    if not packed:
        return inputs
    return packed_length(inputs) if group is None else group_count(inputs, group) * group // 2


def group_count(inputs: int, group: int) -> int:
    """Groups to a row; the last one may be shorter."""
    return -(-inputs // group)


@dataclass(frozen=True)
class QuantizedWeight:
    """A linear layer's weight in integers, symmetric: ŵ = scale · integer, with one scale per output channel or one for
    each ``group`` of its inputs.

    Args:
        values: int8 (outputs, inputs), or uint8 (outputs, bytes) as `pack_nibbles`, or `pack_groups`, packs 4 bits.
        scale: float32 (outputs,), or (outputs, ⌈inputs/group⌉), positive.
        column_sums: int32, of the scales' shape: the sum of the integers that share one, which a zero point is
            multiplied by.
        inputs: the layer's input features.
        trusted: the scales are known to be positive and finite; to look would wait for a GPU.
        group: 32, 64, 128, or None.

    Raises:
        TypeError, ValueError: a tensor, which the message names, has another dtype, shape, device or value.
    """

    values: Int8[Tensor, "outputs inputs"] | UInt8[Tensor, "outputs bytes"]
    scale: Float32[Tensor, "outputs *groups"]
    column_sums: Int32[Tensor, "outputs *groups"]
    inputs: int
    trusted: InitVar[bool] = False
    group: int | None = None

    def __post_init__(self, trusted: bool) -> None:
        if self.values.dtype not in (torch.int8, torch.uint8):
            raise TypeError(f"values must be int8, or uint8 with two 4-bit weights to a byte, got {self.values.dtype}")
        if self.group not in (None, *GROUPS):
            raise ValueError(f"group must be {', '.join(map(str, GROUPS))} or None, got {self.group!r}")
        length = row_length(self.inputs, self.packed, self.group)
        if self.values.ndim != 2 or self.values.shape[1] != length or self.inputs < 1 or self.outputs < 1:
            raise ValueError(
                f"values must be (outputs, {length}) for {self.inputs} inputs of {self.values.dtype}, "
                f"got {tuple(self.values.shape)}"
            )
        self._check_per_scale("scale", torch.float32)
        self._check_per_scale("column_sums", torch.int32)
        if not trusted:
            _check_scale(self.scale)

    @classmethod
    def from_integers(
        cls,
        integers: Int8[Tensor, "outputs inputs"],
        scale: Float[Tensor, "outputs *groups"],
        bits: int = 8,
        group: int | None = None,
    ) -> "QuantizedWeight":
        """Store ``bits``-bit integers in the smallest container that holds them: 4 bits up to 4, 8 above.

        Raises:
            TypeError, ValueError: an argument, which the message names, has a wrong dtype, shape or value.
        """
        check_bits(bits)
        if integers.dtype != torch.int8 or integers.ndim != 2:
            raise TypeError(f"integers must be int8 (outputs, inputs), got {integers.dtype} {tuple(integers.shape)}")
        _check_range(integers, bits)
        if not scale.is_floating_point():
            raise TypeError(f"scale must be a floating-point tensor, got {scale.dtype}")
        values = _packed(integers, group) if bits <= NIBBLE_BITS else integers.contiguous()
        parts = (integers,) if group is None else integers.split(group, 1)
        sums = torch.stack([part.sum(dim=1, dtype=torch.int32) for part in parts], 1)
        sums = sums[:, 0] if group is None else sums
        return cls(values, scale.detach().float().contiguous(), sums, integers.shape[1], group=group)

    @property
    def packed(self) -> bool:
        """Whether a byte holds two weights."""
        return self.values.dtype == torch.uint8

    @property
    def outputs(self) -> int:
        return self.values.shape[0]

    def integers(self) -> Int8[Tensor, "outputs inputs"]:
        """The weight as one int8 each, unpacked where it is packed."""
        if not self.packed:
            return self.values
        if self.group is None:
            return unpack_nibbles(self.values, self.inputs)
        return unpack_groups(self.values, self.inputs, self.group)

    def scales(self) -> Float32[Tensor, "outputs #inputs"]:
        """The scale of every integer, or of all of an output."""
        if self.group is None:
            return self.scale[:, None]
        return self.scale.repeat_interleave(self.group, 1)[:, : self.inputs]

    def _check_per_scale(self, name: str, dtype: torch.dtype) -> None:
        tensor = getattr(self, name)
        if tensor.dtype != dtype:
            raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")
        groups = () if self.group is None else (group_count(self.inputs, self.group),)
        if tensor.shape != (self.outputs, *groups) or tensor.device != self.values.device:
            raise ValueError(
                f"{name} must be {(self.outputs, *groups)} on {self.values.device} like values, "
                f"got {tuple(tensor.shape)} on {tensor.device}"
            )


def _packed(integers: Tensor, group: int | None) -> Tensor:
    return pack_nibbles(integers) if group is None else pack_groups(integers, group)


def _check_range(integers: Tensor, bits: int) -> None:
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if integers.numel() and not lowest <= int(integers.min()) <= int(integers.max()) <= highest:
        raise ValueError(f"integers must lie in [{lowest}, {highest}] at {bits} bits")


def _check_scale(scale: Tensor) -> None:
    if not ((scale > 0) & scale.isfinite()).all():
        raise ValueError("scale must be positive and finite for every output channel")

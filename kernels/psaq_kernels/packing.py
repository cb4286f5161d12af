"""Integer weights as they lie in memory: one byte each, or two 4-bit ones to a byte."""

from dataclasses import InitVar, dataclass

import torch
from jaxtyping import Float, Float32, Int8, Int32, UInt8
from torch import Tensor

from psaq_kernels.levels import check_bits

NIBBLE_BITS = 4


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


@dataclass(frozen=True)
class QuantizedWeight:
    """A linear layer's weight in integers, symmetric, with one scale per output channel: ŵ = scale · integer.

    Args:
        values: int8 (outputs, inputs), or uint8 (outputs, ⌈inputs/2⌉) as `pack_nibbles` packs 4 bits.
        scale: float32 (outputs,), positive.
        column_sums: int32 (outputs,), the sum of each output's integers: what a zero point is multiplied by.
        inputs: the layer's input features.
        trusted: the scales are known to be positive and finite; to look would wait for a GPU.

    Raises:
        TypeError, ValueError: a tensor, which the message names, has another dtype, shape, device or value.
    """

    values: Int8[Tensor, "outputs inputs"] | UInt8[Tensor, "outputs bytes"]
    scale: Float32[Tensor, "outputs"]
    column_sums: Int32[Tensor, "outputs"]
    inputs: int
    trusted: InitVar[bool] = False

    def __post_init__(self, trusted: bool) -> None:
        if self.values.dtype not in (torch.int8, torch.uint8):
            raise TypeError(f"values must be int8, or uint8 with two 4-bit weights to a byte, got {self.values.dtype}")
        length = packed_length(self.inputs) if self.packed else self.inputs
        if self.values.ndim != 2 or self.values.shape[1] != length or self.inputs < 1 or self.outputs < 1:
            raise ValueError(
                f"values must be (outputs, {length}) for {self.inputs} inputs of {self.values.dtype}, "
                f"got {tuple(self.values.shape)}"
            )
        self._check_per_output("scale", torch.float32)
        self._check_per_output("column_sums", torch.int32)
        if not trusted:
            _check_scale(self.scale)

    @classmethod
    def from_integers(
        cls, integers: Int8[Tensor, "outputs inputs"], scale: Float[Tensor, "outputs"], bits: int = 8
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
        values = pack_nibbles(integers) if bits <= NIBBLE_BITS else integers.contiguous()
        sums = integers.sum(dim=1, dtype=torch.int32)
        return cls(values, scale.detach().float().contiguous(), sums, integers.shape[1])

    @property
    def packed(self) -> bool:
        """Whether a byte holds two weights."""
        return self.values.dtype == torch.uint8

    @property
    def outputs(self) -> int:
        return self.values.shape[0]

    def integers(self) -> Int8[Tensor, "outputs inputs"]:
        """The weight as one int8 each, unpacked where it is packed."""
        return unpack_nibbles(self.values, self.inputs) if self.packed else self.values

    def _check_per_output(self, name: str, dtype: torch.dtype) -> None:
        tensor = getattr(self, name)
        if tensor.dtype != dtype:
            raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")
        if tensor.shape != (self.outputs,) or tensor.device != self.values.device:
            raise ValueError(
                f"{name} must be ({self.outputs},) on {self.values.device} like values, "
                f"got {tuple(tensor.shape)} on {tensor.device}"
            )


def _check_range(integers: Tensor, bits: int) -> None:
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if integers.numel() and not lowest <= int(integers.min()) <= int(integers.max()) <= highest:
        raise ValueError(f"integers must lie in [{lowest}, {highest}] at {bits} bits")


def _check_scale(scale: Tensor) -> None:
    if not ((scale > 0) & scale.isfinite()).all():
        raise ValueError("scale must be positive and finite for every output channel")

"""The uniform quantiser: real numbers to b-bit integers by a scale and a zero point, and back."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psaq.quantization.quantizers.bits import check_bits
from psaq.quantization.quantizers.keeps_types import KeepsTypes

_SMALLEST_SCALE = torch.finfo(torch.float32).tiny


class Quantizer(KeepsTypes):
    """What stands at a point once it is quantised: takes a tensor, returns the levels' values in its type."""

    bits: int

    def trainable(self) -> list[Tensor]:
        """The numbers that a gradient may move: steps and ranges, all positive."""
        return []


class AffineQuantizer(Quantizer):
    """Simulated ("fake") uniform quantisation.

        q = clamp(round(x / scale) + zero_point, lowest, highest)        x̂ = scale · (q − zero_point)

    Rounding is half to even; the quotient is the product with the inverse of the scale in float32, as in torch and
    in integer kernels. The gradient passes straight through where x lies inside the range, and is zero
    outside; a scale that requires one gets that of LSQ (Esser et al. 2020). The output is on the grid: quantising it
    again changes no bit.

    Args:
        scale: the width of a step; one positive number per tensor, one per output channel (axis 0), or one per output
            channel and group of inputs.
        zero_point: the integer that stands for 0.0, of the scale's shape: integers run from 0 to 2^b − 1.
            None: symmetric, 0 stands for 0.0 and integers run from −2^(b−1) to 2^(b−1) − 1.
        bits: 2 to 8.
        group: inputs that share a scale, where an output channel has several; the last group may be shorter.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(
        self,
        scale: Float[Tensor, "*channels"],
        zero_point: Int[Tensor, "*channels"] | None,
        bits: int,
        group: int | None = None,
    ):
        super().__init__()
        self.bits = check_bits("bits", bits)
        self.group = group
        self.symmetric = zero_point is None
        self.lowest, self.highest = integer_range(bits, self.symmetric)
        zeros = torch.zeros_like(scale) if zero_point is None else zero_point
        self.register_buffer("scale", scale.detach().float())
        self.register_buffer("zero_point", zeros.detach().int(), persistent=not self.symmetric)

    def trainable(self) -> list[Tensor]:
        """The scale."""
        return [self.scale]

    @property
    def per_channel(self) -> bool:
        """Whether every output channel has a scale of its own."""
        return self.scale.ndim == 1

    def scales(self, inputs: int) -> Float[Tensor, "out inputs"]:
        """The scale of every weight of a matrix with so many inputs."""
        scale = self.scale.view(-1, 1) if self.group is None else self._by_input(self.scale, inputs)
        return scale.expand(-1, inputs)

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return (self.steps(x) * self._broadcast(self.scale, x)).to(x.dtype)

    def steps(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """x̂ / scale = q − zero_point: whole numbers, in float32 at least. The gradient passes straight through."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        scale, zero_point = self._broadcast(self.scale, x), self._broadcast(self.zero_point, x)
        return _Steps.apply(x, scale, zero_point, self.lowest, self.highest)

    def integers(self, x: Float[Tensor, "..."]) -> Int[Tensor, "..."]:
        """The b-bit integers that stand for ``x``, int8 where symmetric and uint8 otherwise."""
        integers = self.steps(x.detach()) + self._broadcast(self.zero_point, x)
        return integers.to(torch.int8 if self.symmetric else torch.uint8)

    def real(self, integers: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The real numbers that ``integers`` stand for."""
        centred = integers.int() - self._broadcast(self.zero_point, integers)
        return centred.float() * self._broadcast(self.scale, integers)

    def grid(self) -> tuple[Float[Tensor, " levels"], Float[Tensor, " levels-1"]]:
        """The levels' values, rising, and the edges between the values that go to one and to the next; of one scale."""
        steps = torch.arange(self.lowest, self.highest + 1).to(self.scale) - self.zero_point
        return steps * self.scale, (steps[1:] - 0.5) * self.scale

    def _broadcast(self, parameter: Tensor, x: Tensor) -> Tensor:
        if self.group is not None:
            return self._by_input(parameter, x.shape[1])
        return parameter.view(-1, *[1] * (x.ndim - 1)) if self.per_channel else parameter

    def _by_input(self, parameter: Float[Tensor, "out groups"], inputs: int) -> Float[Tensor, "out inputs"]:
        assert self.group is not None
        return parameter.repeat_interleave(self.group, 1)[:, :inputs]

    def extra_repr(self) -> str:
        kind = "int" if self.symmetric else "uint"
        if self.group is not None:
            return f"{kind}{self.bits}, {len(self.scale)} channels in groups of {self.group} inputs"
        if self.per_channel:
            return f"{kind}{self.bits}, {len(self.scale)} channels"
        if self.scale.is_meta:
            return f"{kind}{self.bits}"
        return f"{kind}{self.bits}, scale={self.scale.item():.4g}, zero_point={self.zero_point.item()}"


class _Steps(torch.autograd.Function):
    """In place wherever it can be: torch's own fake quantisation takes eight times as long on a CPU, and maps NaN
    to a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, lowest: int, highest: int) -> Tensor:
        quotients = x * scale.reciprocal()
        learns = ctx.needs_input_grad[1]
        levels = quotients.round() if learns else quotients.round_()
        steps = levels.clamp(lowest - zero_point, highest - zero_point)
        if ctx.needs_input_grad[0] or learns:
            ctx.save_for_backward(steps == levels, scale, quotients if learns else None)
        return steps

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inside, scale, quotients = ctx.saved_tensors
        through = gradients[0] * inside * scale.reciprocal()
        if quotients is None:
            return through, None, None, None, None
        # The rounded quotient is taken for x / scale, whose derivative by the scale is −x / scale².
        slopes = quotients.mul_(through)
        if scale.shape == slopes.shape:  # of groups, a scale for every input
            return through, -slopes, None, None, None
        by_channel = slopes.flatten(1).sum(1) if scale.numel() > 1 else slopes.sum()
        return through, -by_channel.view_as(scale), None, None, None


def symmetric_per_channel(weight: Float[Tensor, "out ..."], bits: int) -> AffineQuantizer:
    """The paper's weight quantiser: symmetric min-max, one scale per output channel.

    scale = max|w| / ((highest − lowest) / 2); a channel of zeros gets the scale 1.
    """
    lowest, highest = integer_range(bits, signed=True)
    extent = weight.detach().float().flatten(1).abs().amax(1)
    scale = _positive_scale(extent / ((highest - lowest) / 2))
    return AffineQuantizer(scale, None, bits)


def least_error_per_channel(
    weight: Float[Tensor, "out ..."], bits: int, importance: Float[Tensor, " in"] | None = None
) -> AffineQuantizer:
    """Symmetric, per output channel, with the scale of the least squared error of those from 0.4 to 1.05 times the
    min-max one.

    Args:
        importance: what an error of each input's weight costs: its activation's mean square. None: the same.
    """
    flat = weight.detach().float().flatten(1)
    cost = torch.ones_like(flat[0]) if importance is None else importance.to(flat)
    full = symmetric_per_channel(weight, bits).scale
    best, scale = torch.full_like(full, torch.inf), full
    for factor in torch.linspace(1.05, 0.4, 66).tolist():
        candidate = AffineQuantizer(full * factor, None, bits)
        error = (candidate(flat) - flat).square() @ cost
        best, scale = torch.minimum(error, best), torch.where(error < best, candidate.scale, scale)
    return AffineQuantizer(scale, None, bits)


def asymmetric_per_tensor(
    low: Float[Tensor, ""], high: Float[Tensor, ""], bits: int, include_zero: bool = True
) -> AffineQuantizer:
    """The paper's activation quantiser: asymmetric, one range [low, high] for the whole tensor.

    scale = (high − low) / (2^b − 1), zero_point = clamp(−round(low / scale), 0, 2^b − 1). The range is first
    stretched to include zero: otherwise the clamped zero point would cut off its far end. The authors' code does
    not stretch (``include_zero=False``). A range of one point is always stretched; where that point is 0, the
    scale is 1.
    """
    low, high = low.detach().float(), high.detach().float()
    if include_zero or low == high:
        low, high = low.clamp(max=0), high.clamp(min=0)
    lowest, highest = integer_range(bits, signed=False)
    scale = _positive_scale((high - low) / (highest - lowest))
    zero_point = (-torch.round(low / scale)).clamp(lowest, highest)
    return AffineQuantizer(scale, zero_point, bits)


def integer_range(bits: int, signed: bool) -> tuple[int, int]:
    """The lowest and the highest b-bit integer."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def _positive_scale(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale.clamp(min=_SMALLEST_SCALE), torch.ones_like(scale))

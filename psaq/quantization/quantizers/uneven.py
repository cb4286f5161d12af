"""Quantisers whose steps are uneven, for what softmax and GELU emit."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from psaq.quantization.quantizers.affine import Quantizer
from psaq.quantization.quantizers.bits import check_bits


class UnevenQuantizer(Quantizer):
    """A quantiser by a formula of its own; the gradient passes straight through."""

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return _StraightThrough.apply(x, self.values(x.detach()))

    def values(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The values of the levels that ``x`` goes to, in float32, by ordinary operators."""
        raise NotImplementedError


class LogQuantizer(UnevenQuantizer):
    """Levels at even ratios, for probabilities: most are small, a few near 1 carry the sum.

        q = clamp(round(−τ log2(p / top)), 0, 2^b − 1)        p̂ = top · 2^(−q / τ), and 0 for the last q

    τ, the levels per factor of 2, adapts the base to the layer (AdaLog: Wu et al. 2024).

    Args:
        top: the largest value that occurs.
        levels_per_octave: τ.
        bits: 2 to 8.
    """

    top: Tensor
    levels_per_octave: Tensor

    def __init__(self, top: Float[Tensor, ""], levels_per_octave: Float[Tensor, ""], bits: int):
        super().__init__()
        self.bits = check_bits("bits", bits)
        self.register_buffer("top", top.detach().float())
        self.register_buffer("levels_per_octave", levels_per_octave.detach().float())

    def values(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return self.real(self.levels(x))

    def levels(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """q, the whole numbers that stand for ``x``."""
        share = (x.float() / self.top).clamp(min=torch.finfo(torch.float32).tiny)
        return (-self.levels_per_octave * share.log2()).round_().clamp_(0, 2**self.bits - 1)

    def real(self, levels: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """p̂, what the levels stand for."""
        values = torch.exp2(-levels / self.levels_per_octave) * self.top
        return values.masked_fill_(levels == 2**self.bits - 1, 0)

    def extra_repr(self) -> str:
        return f"log{self.bits}, levels_per_octave={self.levels_per_octave.item():.3g}, top={self.top.item():.3g}"


class SplitQuantizer(UnevenQuantizer):
    """A few even steps below zero, and above it levels that may grow wider.

        x < 0:  x̂ = step · clamp(round(x / step), −n, 0)
        x ≥ 0:  x̂ = top · (q / p)^c,  q = clamp(round(p (x / top)^(1/c)), 0, p),  p = 2^b − 1 − n

    A GELU's negative part lies in [−0.17, 0] whatever the positive part's range (PTQ4ViT: Yuan et al. 2022), and most
    of its positive values are small against the largest, which a curve of 2 makes up for (PowerQuant: Yvinec et al.
    2023). The gradient passes straight through where x lies inside the range, and is zero outside.

    Args:
        negative_step: the width of a step below zero.
        top: the highest level's value.
        negative_levels: n, how many of the levels lie below zero.
        curve: c, 1 for even steps, 2 for squares.
        bits: 2 to 8.
    """

    negative_step: Tensor
    top: Tensor

    def __init__(
        self, negative_step: Float[Tensor, ""], top: Float[Tensor, ""], negative_levels: int, curve: int, bits: int
    ):
        super().__init__()
        self.bits = check_bits("bits", bits)
        self.negative_levels = negative_levels
        self.curve = curve
        self.register_buffer("negative_step", negative_step.detach().float())
        self.register_buffer("top", top.detach().float())

    def trainable(self) -> list[Tensor]:
        """The negative step and the top."""
        return [self.negative_step, self.top]

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return _Split.apply(x, self.values(x.detach()), self.negative_step, self.top, self.lowest)

    @property
    def lowest(self) -> Float[Tensor, ""]:
        """The lowest level's value."""
        return (-self.negative_step * self.negative_levels).detach()

    def grid(self) -> tuple[Float[Tensor, " levels"], Float[Tensor, " levels-1"]]:
        """The levels' values, rising, and the edges between the values that go to one and to the next."""
        below = torch.arange(-self.negative_levels, 0).to(self.top)
        above = torch.arange(self._positive_levels + 1).to(self.top)
        step, top = self.negative_step.detach(), self.top.detach()
        levels = torch.cat([below * step, top * (above / self._positive_levels) ** self.curve])
        edges = torch.cat([(below + 0.5) * step, top * ((above[:-1] + 0.5) / self._positive_levels) ** self.curve])
        return levels, edges

    @property
    def _positive_levels(self) -> int:
        return 2**self.bits - 1 - self.negative_levels

    def values(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        x, step, top = x.float(), self.negative_step.detach(), self.top.detach()
        below = (x / step).round_().clamp_(-self.negative_levels, 0).mul_(step)
        share = (x / top).clamp_(0, 1)
        share = share.sqrt_() if self.curve == 2 else share
        share = share.mul_(self._positive_levels).round_().div_(self._positive_levels)
        share = share.square_() if self.curve == 2 else share
        return torch.where(x < 0, below, share.mul_(top))

    def extra_repr(self) -> str:
        return (
            f"split{self.bits}, {self.negative_levels} steps of {self.negative_step.item():.3g} below zero, "
            f"{'squares' if self.curve == 2 else 'steps'} up to {self.top.item():.3g}"
        )


class _Split(torch.autograd.Function):
    """``values``, with straight-through gradients. Both parts grow with their scale s, x̂(s) = s · f(x / s), and
    where f rounds, its derivative is taken for 1: ∂x̂/∂s = (x̂ − x) / s inside the range and x̂ / s outside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, step: Tensor, top: Tensor, lowest: Tensor) -> Tensor:
        ctx.save_for_backward(x, values, step, top, (x >= lowest) & (x <= top))
        return values.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, values, step, top, inside = ctx.saved_tensors
        gradient = gradients[0].to(values.dtype)  # a slope is the small difference of two products
        through = gradient * inside
        if not ctx.needs_input_grad[2]:
            return through.to(x.dtype), None, None, None, None
        slopes = gradient * values - through * x
        below = slopes.masked_fill(x >= 0, 0).sum()
        return through.to(x.dtype), None, below / step, (slopes.sum() - below) / top, None


def log_quantizer(
    sample: Float[Tensor, "rows keys"], shares: Float[Tensor, " rows"], high: Float[Tensor, ""], bits: int
) -> LogQuantizer:
    """The logarithmic quantiser whose base leaves the least error in what a row of probabilities averages.

    The errors of a row count one by one, for what its values have apart, and as a sum, for what they share; and as
    often as rows have passed that the row stands for, its share.
    """
    top = high.detach().float().clamp(min=1e-6)

    def error(reach: float) -> float:
        errors = LogQuantizer(top, 2**bits / torch.tensor(reach), bits).to(sample.device)(sample) - sample
        return float((errors.square().sum(-1) + errors.sum(-1).square()) @ shares)

    octaves = (half / 2 for half in range(6, 49))  # from a factor of 8 to 6e-8
    best = min(octaves, key=error)
    return LogQuantizer(top, 2**bits / torch.tensor(best), bits).to(sample.device)


def split_quantizer(
    low: Float[Tensor, ""], high: Float[Tensor, ""], bits: int, curve: int, share: float = 0.25
) -> SplitQuantizer:
    """The split quantiser that holds [low, high], with a ``share`` of its levels below zero (one at least)."""
    negative_levels = max(1, round(share * 2**bits))
    smallest = torch.finfo(torch.float32).tiny
    step = (-low / negative_levels).clamp(min=smallest)
    return SplitQuantizer(step, high.clamp(min=smallest), negative_levels, curve, bits)


class _StraightThrough(torch.autograd.Function):
    """``values``, with the gradient of ``x``."""

    @staticmethod
    def forward(_: Any, x: Tensor, values: Tensor) -> Tensor:
        return values.to(x.dtype)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None

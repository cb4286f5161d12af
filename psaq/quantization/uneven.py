"""Quantisers whose steps are uneven, for what softmax and GELU emit."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from psaq.quantization.affine import Quantizer, check_bits


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
    """One step for negative values, another for positive ones, half of the levels each.

    A GELU's negative part lies in [−0.17, 0] whatever the positive part's range (PTQ4ViT: Yuan et al. 2022).

    Args:
        negative_step: the width of the 2^(b−1) steps below zero.
        positive_step: that of the 2^(b−1) − 1 steps above.
        bits: 2 to 8.
    """

    negative_step: Tensor
    positive_step: Tensor

    def __init__(self, negative_step: Float[Tensor, ""], positive_step: Float[Tensor, ""], bits: int):
        super().__init__()
        self.bits = check_bits("bits", bits)
        self.register_buffer("negative_step", negative_step.detach().float())
        self.register_buffer("positive_step", positive_step.detach().float())

    def values(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        step = torch.where(x < 0, self.negative_step, self.positive_step)
        half = 2 ** (self.bits - 1)
        levels = (x.float() / step).round_().clamp_(-half, half - 1)
        return levels * step

    def extra_repr(self) -> str:
        return f"split{self.bits}, steps {self.negative_step.item():.3g} and {self.positive_step.item():.3g}"


def log_quantizer(sample: Float[Tensor, "rows keys"], high: Float[Tensor, ""], bits: int) -> LogQuantizer:
    """The logarithmic quantiser whose base leaves the least error in what a row of probabilities averages.

    The errors of a row count one by one, for what its values have apart, and as a sum, for what they share.
    """
    top = high.detach().float().clamp(min=1e-6)

    def error(candidate: LogQuantizer) -> float:
        errors = candidate(sample) - sample
        return float((errors.square().sum(-1) + errors.sum(-1).square()).mean())

    octaves = torch.linspace(3, 24, 43, device=sample.device)  # from a factor of 8 to 6e-8
    return min((LogQuantizer(top, 2**bits / reach, bits) for reach in octaves), key=error)


def split_quantizer(low: Float[Tensor, ""], high: Float[Tensor, ""], bits: int) -> SplitQuantizer:
    """The split quantiser that holds [low, high]."""
    half = 2 ** (bits - 1)
    smallest = torch.finfo(torch.float32).tiny
    return SplitQuantizer((-low / half).clamp(min=smallest), (high / (half - 1)).clamp(min=smallest), bits)


class _StraightThrough(torch.autograd.Function):
    """``values``, with the gradient of ``x``."""

    @staticmethod
    def forward(_: Any, x: Tensor, values: Tensor) -> Tensor:
        return values.to(x.dtype)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None

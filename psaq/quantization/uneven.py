"""Quantisers whose steps are uneven, for what softmax and GELU emit."""

import torch
from jaxtyping import Float
from torch import Tensor

from psaq.quantization.affine import Quantizer, check_bits


class LogQuantizer(Quantizer):
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

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        last = 2**self.bits - 1
        share = (x.detach().float() / self.top).clamp(min=torch.finfo(torch.float32).tiny)
        levels = (-self.levels_per_octave * share.log2()).round_().clamp_(0, last)
        values = torch.exp2(-levels / self.levels_per_octave) * self.top
        return _straight_through(x, values.masked_fill_(levels == last, 0))

    def extra_repr(self) -> str:
        return f"log{self.bits}, levels_per_octave={self.levels_per_octave.item():.3g}, top={self.top.item():.3g}"


class SplitQuantizer(Quantizer):
    """One step for negative values, another for positive ones, half of the levels each.

    A GELU's negative part lies in [−0.17, 0] whatever the positive part's range (PTQ4ViT: Yuan et al. 2022).

    Args:
        low: the smallest value that occurs, negative.
        high: the largest, positive.
        bits: 2 to 8.
    """

    negative_step: Tensor
    positive_step: Tensor

    def __init__(self, negative_step: Float[Tensor, ""], positive_step: Float[Tensor, ""], bits: int):
        super().__init__()
        self.bits = check_bits("bits", bits)
        self.register_buffer("negative_step", negative_step.detach().float())
        self.register_buffer("positive_step", positive_step.detach().float())

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        step = torch.where(x < 0, self.negative_step, self.positive_step)
        half = 2 ** (self.bits - 1)
        levels = (x.detach().float() / step).round_().clamp_(-half, half - 1)
        return _straight_through(x, levels * step)

    def extra_repr(self) -> str:
        return f"split{self.bits}, steps {self.negative_step.item():.3g} and {self.positive_step.item():.3g}"


def log_quantizer(sample: Float[Tensor, "..."], high: Float[Tensor, ""], bits: int) -> LogQuantizer:
    """The logarithmic quantiser, of those with a range of bases, that leaves the least squared error in ``sample``."""
    sample, top = sample.detach().float().flatten(), high.detach().float().clamp(min=1e-6)
    octaves = torch.linspace(3, 24, 43, device=sample.device)  # from one base that keeps only the large to 6e-8
    candidates = [LogQuantizer(top, 2**bits / reach, bits) for reach in octaves]
    errors = torch.stack([(candidate(sample) - sample).square().mean() for candidate in candidates])
    return candidates[int(errors.argmin())]


def split_quantizer(low: Float[Tensor, ""], high: Float[Tensor, ""], bits: int) -> SplitQuantizer:
    """The split quantiser that holds [low, high]."""
    half = 2 ** (bits - 1)
    smallest = torch.finfo(torch.float32).tiny
    return SplitQuantizer((-low / half).clamp(min=smallest), (high / (half - 1)).clamp(min=smallest), bits)


def _straight_through(x: Tensor, values: Tensor) -> Tensor:
    """``values``, with the gradient of ``x``."""
    values = values.to(x.dtype)
    return x + (values - x).detach() if x.requires_grad else values

"""Moments of a layer's input over the calibration images, quantised and as it was."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from psaq.quantization.passes.im2col import Vectors

_UNCERTAIN = 1e-12  # of a second moment, once float64 has subtracted that of the mean
_TINY = torch.finfo(torch.float32).tiny


class InputStatistics:
    """Mean and second moment of a layer's quantised input x̂ and, where it comes with its full-precision input x, those
    of both, in float64.

    Args:
        centred: take the moments about the means: a bias that is compensated takes care of those.
    """

    def __init__(self, centred: bool):
        self.centred = centred
        self.counts: list[int] = []
        self._sums: list[Tensor] = []

    @classmethod
    def of_one(cls, inputs: Iterable[Vectors], centred: bool) -> "InputStatistics":
        """Of inputs that have no counterparts in full precision: each is its own."""
        statistics = cls(centred)
        for x in inputs:
            statistics.add(x, x)
        return statistics

    def add(self, quantised: Vectors, reference: Vectors | None = None) -> None:
        """Count in a batch, and the same batch in full precision."""
        sums = [quantised.sum(), quantised.outer_sum(quantised)]
        if reference is not None:
            sums += [reference.sum(), quantised.outer_sum(reference)]
        self.counts.append(len(quantised))
        self._sums = sums if not self._sums else [total + more for total, more in zip(self._sums, sums, strict=True)]

    @property
    def _count(self) -> int:
        return sum(self.counts)

    @property
    def mean(self) -> Float[Tensor, " in"]:
        """E[x̂]."""
        return self._sums[0] / self._count

    @property
    def reference_mean(self) -> Float[Tensor, " in"]:
        """E[x]."""
        return self._sums[2] / self._count

    @property
    def second_moment(self) -> Float[Tensor, "in in"]:
        """E[x̂ x̂ᵀ], less that of the mean where centred; positive definite, also where x̂ is always the same."""
        return self._moment(1, self.mean)

    @property
    def cross_moment(self) -> Float[Tensor, "in in"]:
        """E[x̂ xᵀ], less that of the means where centred."""
        return self._moment(3, self.reference_mean)

    def _moment(self, index: int, mean: Float[Tensor, " in"]) -> Float[Tensor, "in in"]:
        raw = self._sums[index] / self._count
        least = (_UNCERTAIN * (self._sums[1] / self._count).diagonal().mean()).clamp(min=_TINY)
        moment = raw - torch.outer(self.mean, mean) if self.centred else raw
        return moment + least * torch.eye(len(raw)).to(raw)

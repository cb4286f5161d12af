"""What error a quantiser leaves in a sample, without quantising value by value."""

import torch
from jaxtyping import Float
from torch import Tensor

from psaq.quantization.quantizers.affine import AffineQuantizer
from psaq.quantization.quantizers.uneven import SplitQuantizer


class SortedSample:
    """A sample in order, with running sums: all values between two edges go to one level, so that the error at that
    level follows from how many they are and from their sum. Sorting costs as much as a few quantisers' errors one by
    one, and a search tries dozens.

    Args:
        sample: what is quantised.
        shares: how many rows each row stands for.
        importance: what an error costs, by channel. None: the same in all.
    """

    def __init__(
        self,
        sample: Float[Tensor, "rows channels"],
        shares: Float[Tensor, " rows"],
        importance: Float[Tensor, " channels"] | None = None,
    ):
        values, order = sample.flatten().sort()
        by_channel = torch.ones_like(sample[0]) if importance is None else importance.to(sample)
        costs, moments = torch.outer(shares, by_channel).flatten()[order].double(), values.double()
        self.values = values
        self._costs, self._moments = _running(costs), _running(costs * moments)
        self._squares = costs @ moments.square()
        self._count = float(shares.double().sum()) * (sample.shape[1] if importance is None else 1)

    def error(self, quantizer: AffineQuantizer | SplitQuantizer) -> float:
        """Σ importance · (x̂ − x)² over the channels, its mean over the rows that the sample stands for; without an
        importance the mean over the channels, too."""
        levels, edges = quantizer.grid()
        places = torch.searchsorted(self.values, edges.to(self.values))
        ends = torch.cat([places.new_zeros(1), places, places.new_tensor([len(self.values)])])
        costs, moments = self._costs[ends].diff(), self._moments[ends].diff()
        at_levels = (levels.double() * (levels.double() * costs - 2 * moments)).sum()
        return float((self._squares + at_levels) / self._count)


def _running(terms: Float[Tensor, " values"]) -> Float[Tensor, " values+1"]:
    """The sum of the first so many."""
    return torch.cat([terms.new_zeros(1), terms.cumsum(0)])

"""The cells in which similarities are counted, and the kernel between them: geometry shared by both backends.

[-1, 1] is cut into *intervals* bounded by *nodes*, six or more per bandwidth, and each interval into twelve
*cells*. Of the similarities in a cell only their number and their mean position matter: a linear Taylor step
about the cell's centre, off by at most (cell/bandwidth)²/8 = 2.4e-5 of the kernel's peak. From the cells to the
nodes the kernel is interpolated by cubic Hermite polynomials, off by (interval/bandwidth)⁴/128 = 6e-6.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

NODES_PER_BANDWIDTH = 6
CELLS_PER_INTERVAL = 12


@dataclass(frozen=True)
class Cells:
    """A partition of [-1, 1] fine enough for a Gaussian of the given bandwidth."""

    bandwidth: float

    @property
    def intervals(self) -> int:
        return math.ceil(2 * NODES_PER_BANDWIDTH / self.bandwidth)

    @property
    def nodes(self) -> int:
        return self.intervals + 1

    @property
    def count(self) -> int:
        return self.intervals * CELLS_PER_INTERVAL

    @property
    def interval_width(self) -> float:
        return 2 / self.intervals

    def node_positions(self, device: torch.device) -> Float[Tensor, "nodes"]:
        return torch.linspace(-1, 1, self.nodes, dtype=torch.float64, device=device)


def hermite_weights(device: torch.device) -> Float[Tensor, "moments cells corners"]:
    """What a similarity gives to its interval: corners = (value, slope) at the left node, then at the right.

    A similarity at fraction u of cell c weighs ``weights[0, c] + u * weights[1, c]``; slopes are per interval.
    """
    centre = (torch.arange(CELLS_PER_INTERVAL, dtype=torch.float64, device=device) + 0.5) / CELLS_PER_INTERVAL
    value = _hermite(centre)
    slope = _hermite_slope(centre) / CELLS_PER_INTERVAL
    return torch.stack((value - slope / 2, slope))


def _hermite(s: Float[Tensor, "points"]) -> Float[Tensor, "points corners"]:
    left, right = 1 - s, s
    return torch.stack(((1 + 2 * s) * left**2, s * left**2, (3 - 2 * s) * right**2, -left * right**2), dim=-1)


def _hermite_slope(s: Float[Tensor, "points"]) -> Float[Tensor, "points corners"]:
    bump = 6 * s * (1 - s)
    return torch.stack((-bump, (1 - s) * (1 - 3 * s), bump, s * (3 * s - 2)), dim=-1)


def gaussian(
    grid: Float[Tensor, "grid"], positions: Float[Tensor, "nodes"], bandwidth: float
) -> tuple[Float[Tensor, "nodes grid"], Float[Tensor, "nodes grid"], Float[Tensor, "nodes grid"]]:
    """K((x − z)/h)/h for a Gaussian K at every grid point x and position z, with its first two z-derivatives."""
    z = (grid - positions[:, None]) / bandwidth
    kernel = torch.exp(-0.5 * z * z) / (bandwidth * math.sqrt(2 * math.pi))
    return kernel, kernel * z / bandwidth, kernel * (z * z - 1) / bandwidth**2

"""The cells in which similarities are counted, and the kernel between them: geometry shared by both backends.

Similarities are counted by their distance u = 1 − Γ from 1, which float32 resolves best where patches are all alike.
The range of u, [0, 2] and a hair more for rounding, is cut into *intervals* bounded by *nodes*, four or more per
bandwidth, and each interval into sixteen *cells*. Of the similarities in a cell only their number n and their first
moment matter: the kernel is developed to second order about the cell's centre, as if all n sat at their mean. What
that neglects, the variance within a cell, is at most (cell/bandwidth)²/8 = 3e-5 of the kernel's peak, and nothing
where all similarities are alike, where the entropy's gradient is most delicate. Between nodes the kernel is a quintic
Hermite polynomial, off by 15/46080 · (interval/bandwidth)⁶ = 8e-8.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

NODES_PER_BANDWIDTH = 4
CELLS_PER_INTERVAL = 16
ORDERS = 3  # value, slope and curvature
REACH = 2 + 1e-3  # the greatest distance; a similarity computed in float32 may fall below −1 by rounding

# A polynomial on [0, 1], by ascending powers, for each of the value, the slope and the curvature at 0 and at 1.
QUINTIC = (
    (1, 0, 0, -10, 15, -6),
    (0, 1, 0, -6, 8, -3),
    (0, 0, 0.5, -1.5, 1.5, -0.5),
    (0, 0, 0, 10, -15, 6),
    (0, 0, 0, -4, 7, -3),
    (0, 0, 0, 0.5, -1, 0.5),
)


@dataclass(frozen=True)
class Cells:
    """A partition of the distances fine enough for a Gaussian of the given bandwidth."""

    bandwidth: float

    @property
    def intervals(self) -> int:
        return math.ceil(REACH * NODES_PER_BANDWIDTH / self.bandwidth)

    @property
    def nodes(self) -> int:
        return self.intervals + 1

    @property
    def count(self) -> int:
        return self.intervals * CELLS_PER_INTERVAL

    @property
    def interval_width(self) -> float:
        return REACH / self.intervals

    @property
    def per_unit(self) -> float:
        """Cells in a unit of similarity."""
        return self.count / REACH

    def node_similarities(self, device: torch.device) -> Float[Tensor, "nodes"]:
        return 1 - torch.linspace(0, REACH, self.nodes, dtype=torch.float64, device=device)


@cache
def corner_weights(device: torch.device) -> Float[Tensor, "orders cells corners"]:
    """Taylor coefficients, about each cell's centre and per cell width, of the six Hermite polynomials."""
    centre = (torch.arange(CELLS_PER_INTERVAL, dtype=torch.float64, device=device) + 0.5) / CELLS_PER_INTERVAL
    polynomials = torch.tensor(QUINTIC, dtype=torch.float64, device=device)
    coefficients = []
    for order in range(ORDERS):
        powers = centre[:, None] ** torch.arange(polynomials.shape[1], device=device)
        coefficients.append(powers @ polynomials.mT / (math.factorial(order) * CELLS_PER_INTERVAL**order))
        polynomials = polynomials[:, 1:] * torch.arange(1, polynomials.shape[1], device=device)
    return torch.stack(coefficients).float()


def kernel_derivatives(grid: Float[Tensor, "grid"], cells: Cells, first: int) -> Float[Tensor, "orders nodes grid"]:
    """Derivatives of orders ``first`` to ``first`` + 2 of K((x − Γ)/h)/h in u = 1 − Γ, at the nodes.

    K is the Gaussian; the first is per unit of u, each further one per interval. The density takes orders 0 to 2,
    its gradient 1 to 3.
    """
    h, width = cells.bandwidth, cells.interval_width
    z = ((grid.double() - cells.node_similarities(grid.device)[:, None]) / h).float()
    kernel = torch.exp(-0.5 * z * z)
    hermite = [None, -z, z * z - 1, z * (3 - z * z)][first : first + ORDERS]
    derivatives = kernel.new_empty(ORDERS, *kernel.shape)
    for order, (polynomial, out) in enumerate(zip(hermite, derivatives, strict=True)):
        torch.mul(kernel, width**order / (h ** (first + order + 1) * math.sqrt(2 * math.pi)), out=out)
        if polynomial is not None:
            out.mul_(polynomial)
    return derivatives

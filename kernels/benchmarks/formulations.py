"""Ways to get the density of a set of similarities, and the gradient, that were weighed against the one in use.

Each is a pair of functions of samples (images, M): the density at the grid points, and dLoss/dΓ for every sample
given dLoss/d density. They are written for comparison, with Γ in memory. What the operation itself does is
"cells"; `similarity_density.py` prints accuracy, time, registers and shared memory of all.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from psaq_kernels import similarity_density

NEAREST_BINS_PER_BANDWIDTH = 8
SPLINE_BINS_PER_BANDWIDTH = 2
CHEBYSHEV_TERMS_PER_INVERSE_BANDWIDTH = 5.3

Samples = Float[Tensor, "images samples"]
PerGrid = Float[Tensor, "images grid"]
Grid = Float[Tensor, "grid"]


@dataclass(frozen=True)
class Formulation:
    """One way: the density of the samples, and the gradient for each sample, both times the number of samples."""

    density: Callable[[Samples, Grid, float], PerGrid]
    slope: Callable[[Samples, PerGrid, Grid, float], Samples]

    def __call__(self, features: Float[Tensor, "images windows patches channels"], grid: Grid, h: float) -> PerGrid:
        unit = F.normalize(features.float(), dim=-1)
        return _Apply.apply((unit @ unit.mT).flatten(1), grid, h, self)


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, samples: Samples, grid: Grid, h: float, way: Formulation) -> PerGrid:
        ctx.save_for_backward(samples, grid)
        ctx.way, ctx.h = way, h
        return way.density(samples, grid, h) / samples.shape[1]

    @staticmethod
    def backward(ctx: Any, gradient: PerGrid) -> tuple[Samples, None, None, None]:
        samples, grid = ctx.saved_tensors
        return ctx.way.slope(samples, gradient, grid, ctx.h) / samples.shape[1], None, None, None


def _kernel(grid: Grid, positions: Float[Tensor, "nodes"], h: float) -> Float[Tensor, "nodes grid"]:
    return torch.exp(-0.5 * ((grid - positions[:, None]) / h) ** 2) / (h * math.sqrt(2 * math.pi))


# Direct sum: as many exponentials per sample as there are grid points -------------------------------------------------


def _direct_density(samples: Samples, grid: Grid, h: float) -> PerGrid:
    return torch.stack([_kernel(x[None], samples.flatten(), h).view_as(samples).sum(1) for x in grid], 1)


def _direct_slope(samples: Samples, gradient: PerGrid, grid: Grid, h: float) -> Samples:
    slope = torch.zeros_like(samples)
    for x, weight in zip(grid, gradient.unbind(1), strict=True):
        z = (x - samples) / h
        slope.addcmul_(weight[:, None], z * torch.exp(-0.5 * z * z))
    return slope / (h * h * math.sqrt(2 * math.pi))


# Nearest of fine bins, smoothed; the analytic derivative tabulated at the bins ----------------------------------------


def _nearest_bins(samples: Samples, h: float) -> tuple[Tensor, Float[Tensor, "nodes"]]:
    bins = math.ceil(2 * NEAREST_BINS_PER_BANDWIDTH / h)
    index = ((samples + 1) * (bins / 2)).round().long().clamp(0, bins)
    return index, torch.linspace(-1, 1, bins + 1, device=samples.device)


def _nearest_density(samples: Samples, grid: Grid, h: float) -> PerGrid:
    index, positions = _nearest_bins(samples, h)
    counts = samples.new_zeros(len(samples), len(positions)).scatter_add_(1, index, torch.ones_like(samples))
    return counts @ _kernel(grid, positions, h)


def _nearest_slope(samples: Samples, gradient: PerGrid, grid: Grid, h: float) -> Samples:
    index, positions = _nearest_bins(samples, h)
    slope = _kernel(grid, positions, h) * (grid - positions[:, None]) / h**2
    return (gradient @ slope.mT).gather(1, index)


# Cubic B-spline bins, smoothed with the variance that the spline does not bring ---------------------------------------


def _spline_weights(t: Samples) -> list[Samples]:
    return [(1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6]


def _spline_slopes(t: Samples) -> list[Samples]:
    return [-((1 - t) ** 2) / 2, (3 * t**2 - 4 * t) / 2, (-3 * t**2 + 2 * t + 1) / 2, t**2 / 2]


def _spline_bins(samples: Samples, h: float) -> tuple[Tensor, Samples, Float[Tensor, "nodes"], float]:
    bins = math.ceil(2 * SPLINE_BINS_PER_BANDWIDTH / h)
    width = 2 / bins
    position = (samples.clamp(-1, 1) + 1) / width
    index = position.long().clamp(0, bins - 1)
    positions = -1 + width * torch.arange(-1, bins + 2, device=samples.device)
    return index, position - index, positions, width


def _spline_kernel(grid: Grid, positions: Float[Tensor, "nodes"], width: float, h: float) -> Tensor:
    return _kernel(grid, positions, math.sqrt(h * h - width * width / 3))


def _spline_density(samples: Samples, grid: Grid, h: float) -> PerGrid:
    index, t, positions, width = _spline_bins(samples, h)
    counts = samples.new_zeros(len(samples), len(positions))
    for node, weight in enumerate(_spline_weights(t)):
        counts.scatter_add_(1, index + node, weight)
    return counts @ _spline_kernel(grid, positions, width, h)


def _spline_slope(samples: Samples, gradient: PerGrid, grid: Grid, h: float) -> Samples:
    index, t, positions, width = _spline_bins(samples, h)
    table = gradient @ _spline_kernel(grid, positions, width, h).mT
    terms = [slope * table.gather(1, index + node) for node, slope in enumerate(_spline_slopes(t))]
    return torch.stack(terms).sum(0) / width


# Chebyshev moments ----------------------------------------------------------------------------------------------------


def _chebyshev_terms(h: float) -> int:
    return math.ceil(CHEBYSHEV_TERMS_PER_INVERSE_BANDWIDTH / h) + 20


def _chebyshev_coefficients(grid: Grid, h: float) -> Float[Tensor, "terms grid"]:
    """Of the kernel about each grid point as a function of Γ, by interpolation at the Chebyshev points."""
    terms = _chebyshev_terms(h)
    angles = math.pi * (torch.arange(terms, dtype=torch.float64, device=grid.device) + 0.5) / terms
    values = _kernel(grid.double(), angles.cos(), h)
    orders = torch.arange(terms, dtype=torch.float64, device=grid.device)
    coefficients = torch.cos(orders[:, None] * angles) @ values * (2 / terms)
    coefficients[0] /= 2
    return coefficients


def _chebyshev_density(samples: Samples, grid: Grid, h: float) -> PerGrid:
    before, now = torch.ones_like(samples), samples.clamp(-1, 1)
    twice = 2 * now
    moments = [before.sum(1), now.sum(1)]
    for _ in range(_chebyshev_terms(h) - 2):
        before, now = now, torch.addcmul(-before, twice, now)
        moments.append(now.sum(1))
    return (torch.stack(moments, 1).double() @ _chebyshev_coefficients(grid, h)).float()


def _chebyshev_slope(samples: Samples, gradient: PerGrid, grid: Grid, h: float) -> Samples:
    """Clenshaw's recurrence over the derivative's coefficients."""
    series = gradient.double() @ _chebyshev_coefficients(grid, h).mT
    derivative = torch.zeros_like(series)
    for order in range(series.shape[1] - 2, -1, -1):
        above = derivative[:, order + 2] if order + 2 < series.shape[1] else 0
        derivative[:, order] = above + 2 * (order + 1) * series[:, order + 1]
    derivative[:, 0] /= 2
    later, latest = torch.zeros_like(samples), torch.zeros_like(samples)
    x = samples.clamp(-1, 1)
    for coefficient in derivative.float().flip(1).unbind(1)[:-1]:
        later, latest = latest, torch.addcmul(coefficient[:, None] - later, 2 * x, latest)
    return derivative[:, :1].float() + x * latest - later


FORMULATIONS: dict[str, Callable[..., PerGrid]] = {
    "cells": similarity_density,
    "direct": Formulation(_direct_density, _direct_slope),
    "nearest": Formulation(_nearest_density, _nearest_slope),
    "spline": Formulation(_spline_density, _spline_slope),
    "chebyshev": Formulation(_chebyshev_density, _chebyshev_slope),
}

"""Differential entropy of a sampled density."""

import torch
from jaxtyping import Float
from torch import Tensor


def density_entropy(
    density: Float[Tensor, "*batch grid"], grid: Float[Tensor, "grid"], floor: float = 1e-4
) -> Float[Tensor, "*batch"]:
    """Differential entropy −∫ g log g dx in nats, g = density + floor, by the trapezoid rule over ``grid``.

    PSAQ-ViT's equation 3 (Li et al., ECCV 2022). ``floor`` keeps the logarithm finite where the density
    vanishes; with ``floor=0`` an empty stretch contributes its limit, 0. Differentiable in ``density``; a NaN
    in the density gives a NaN.

    Raises:
        ValueError: ``grid`` does not match the density's last dimension, or ``floor`` is negative.
    """
    if grid.ndim != 1 or density.ndim == 0 or density.shape[-1] != grid.shape[0]:
        raise ValueError(
            f"grid must be one-dimensional and as long as the density's last dimension: "
            f"got grid {tuple(grid.shape)} for density {tuple(density.shape)}"
        )
    if not floor >= 0:
        raise ValueError(f"floor must be zero or positive, got {floor}")
    raised = density + floor
    logarithm = raised.clamp_min(torch.finfo(raised.dtype).tiny).log()
    return -torch.trapezoid(raised * logarithm, grid, dim=-1)

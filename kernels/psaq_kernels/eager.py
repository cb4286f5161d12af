"""The formulation that the operation replaces, kept to be measured against; nothing else uses it.

Li et al. 2022 describe the loss by its equations, and the usual code follows them literally: patches against patches
by broadcasting, every similarity against every grid point.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def eager_similarity_density(
    features: Float[Tensor, "images windows patches channels"], grid: Float[Tensor, " grid"], bandwidth: float
) -> Float[Tensor, "images grid"]:
    """Equations 1 and 2, writing tensors of (images, N, N, channels) and of (images, grid, windows·N²)."""
    similarity = F.cosine_similarity(features[..., :, None, :], features[..., None, :, :], dim=-1)
    samples = similarity.flatten(1)
    distance = (grid[None, :, None] - samples[:, None, :]) / bandwidth
    kernel = torch.exp(-0.5 * distance.square()) / (bandwidth * math.sqrt(2 * math.pi))
    return kernel.mean(dim=-1)

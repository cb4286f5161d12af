"""What synthesis minimises: patch-similarity entropy, negated, and smoothness (Li et al. 2022); pixels' class loss."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from psaq.choices import Grid
from psaq.models.features import Features
from psaq_kernels import density_entropy, similarity_density, similarity_range
from psaq_kernels.eager import eager_similarity_density

REFERENCE_GRID_POINTS = 10
_MARGIN = 5  # bandwidths beyond ±1 that still hold mass: the diagonal of Γ is exactly 1


def similarity_grid(bandwidth: float) -> Float[Tensor, " grid"]:
    """Points at most one bandwidth apart over every similarity that can occur and its kernel's tails.

    A Gaussian of width h summed at spacing ≤ h is its integral to 1e-8, so the trapezoid adds no error of its own.
    """
    intervals = math.ceil(2 / bandwidth) + 2 * _MARGIN
    reach = 1 + _MARGIN * bandwidth
    return torch.linspace(-reach, reach, intervals + 1)


def patch_similarity_entropy(
    features: Sequence[Features], bandwidth: float = 0.01, grid: Grid = "fine"
) -> Float[Tensor, "layers images"]:
    """Differential entropy H (nats) of each layer's patch-similarity density (Li et al. 2022, eq. 1–3).

    Args:
        features: one (images, windows, patches, channels) tensor per layer.
        bandwidth: h of the Gaussian kernel, in units of cosine similarity.
        grid: "reference" takes the authors' 10 points between each layer's smallest and largest similarity,
            about 12 h apart on a bimodal density, which under-resolves the integral.
    """
    if grid == "reference":
        return torch.stack([_reference_entropy(layer, bandwidth) for layer in features])
    points = similarity_grid(bandwidth).to(features[0].device)
    return density_entropy(similarity_density(features, points, bandwidth), points)


def pixel_class_loss(probabilities: Float[Tensor, "images classes height width"]) -> Float[Tensor, ""]:
    """The mutual information of a pixel and the class that a segmenter gives it, in nats, negated (Krause, Perona,
    Gomes 2010): least where the model is sure of every pixel and finds all classes, as often in all images together.

    It takes the place of a class loss. A segmenter's last layers answer photographs with far larger features than
    images on which it is sure of nothing, and ranges that are found on those clip them.
    """
    return _entropy(probabilities, 1).mean() - _entropy(probabilities.mean((0, 2, 3)), 0)


def total_variation(images: Float[Tensor, "images 3 height width"]) -> Float[Tensor, " images"]:
    """Sum of the L2 norms of the differences to the right, lower and both diagonal neighbours, per image."""
    return sum((difference.flatten(1).norm(dim=1) for difference in _differences(images)), start=images.new_zeros(()))


def smoothness_loss(images: Float[Tensor, "images 3 height width"], target: float | Tensor) -> Float[Tensor, ""]:
    """Mean distance of the images' total variation from ``target``: rougher and smoother images both cost.

    The authors take the norm over the whole batch with a target fixed for 32 images, so that a single image is
    asked to be rougher; per image, the same loss holds for any batch. The factor √32 gives their weighting back.
    """
    return math.sqrt(32) * (total_variation(images) - target).abs().mean()


def reference_smoothness_loss(
    images: Float[Tensor, "images 3 height width"], target: float | Tensor
) -> Float[Tensor, ""]:
    """The authors' smoothness loss: total variation of the batch as if it were one image, against ``target``."""
    return (sum(difference.norm() for difference in _differences(images)) - target).abs()


def eager_entropy(layer: Features, bandwidth: float = 0.01) -> Tensor:
    """The entropy of one layer at the authors' 10 points, as the paper's equations read, mean over images: slow, and
    what the fused one is measured beside."""
    with torch.no_grad():
        unit = F.normalize(layer, dim=-1)
        lowest, highest = torch.aminmax(unit @ unit.mT)
    grid = torch.linspace(float(lowest), float(highest), REFERENCE_GRID_POINTS, device=layer.device)
    return density_entropy(eager_similarity_density(layer, grid, bandwidth), grid).mean()


def _reference_entropy(layer: Features, bandwidth: float) -> Float[Tensor, " images"]:
    lowest, highest = similarity_range(layer.detach())
    points = torch.linspace(float(lowest), float(highest), REFERENCE_GRID_POINTS, device=layer.device)
    return density_entropy(similarity_density(layer, points, bandwidth), points)


def _entropy(probabilities: Tensor, dim: int) -> Tensor:
    """In nats. The smallest number keeps the slope at zero finite."""
    return torch.special.entr(probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny)).sum(dim)


def _differences(images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    right = images[..., :, 1:] - images[..., :, :-1]
    down = images[..., 1:, :] - images[..., :-1, :]
    diagonal = images[..., 1:, 1:] - images[..., :-1, :-1]
    other_diagonal = images[..., 1:, :-1] - images[..., :-1, 1:]
    return right, down, diagonal, other_diagonal

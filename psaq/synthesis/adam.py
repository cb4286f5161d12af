"""The step that images take: Adam on their pixels, or on the images at several resolutions at once."""

import torch
from torch import Tensor
from torch.nn import functional as F

from psaq.images.batches import Images
from psaq.synthesis.state import BatchState

_BETAS = (0.5, 0.9)
_EPSILON = 1e-8


def adam_step(batch: BatchState, gradient: Images, rate: float) -> None:
    """One step of Adam (Kingma & Ba 2015, algorithm 1), its state kept with the batch so that it can be resumed.

    At several resolutions each has moments of its own and the image moves by the sum of their steps: as if it were
    the sum of images of those sizes (Fort & Whitaker 2025). Large shapes then move as fast as single pixels.
    """
    first, second = _BETAS
    gradients = torch.stack([_coarser(gradient, level) for level in range(len(batch.mean_gradient))])
    batch.mean_gradient.lerp_(gradients, 1 - first)
    batch.mean_square.lerp_(gradients.square(), 1 - second)
    mean = batch.mean_gradient / (1 - first**batch.step)
    root = (batch.mean_square / (1 - second**batch.step)).sqrt_()
    batch.pixels.sub_((rate * mean / (root + _EPSILON)).sum(0))


def _coarser(gradient: Images, level: int) -> Tensor:
    """The gradient as an image of 1 / 2^level of the height and width has it, brought back to full size."""
    if level == 0:
        return gradient
    height, width = gradient.shape[-2:]
    coarse = F.adaptive_avg_pool2d(gradient, (max(height >> level, 1), max(width >> level, 1)))
    return F.interpolate(coarse, size=(height, width), mode="bilinear")

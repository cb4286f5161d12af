"""Collages of calibration images: a part of one set into another, cut out larger, in other colours.

Photographs differ in scale, light and colour, and hold several things; images made by one optimisation resemble one
another. What is fitted to a few of them, the rounding of weights above all, fits photographs worse than it could.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from psaq.images.batches import Images

_PATCH_SIDE = (0.2, 0.8)  # of what is set in, as part of the image's
_CROP_AREA = (0.25, 1.0)  # of what is cut out, as part of the image's
_SATURATION = (0.0, 2.0)
_CONTRAST = (0.6, 1.4)
_BRIGHTNESS = 0.6  # standard deviation of what is added, in normalised pixel units


def collages(batches: list[Images], count: int) -> list[Images]:
    """``count`` collages of every image in the batches, always the same ones."""
    draw = torch.Generator().manual_seed(0)
    return [collage(batch, draw) for _ in range(count) for batch in batches]


def collage(images: Images, draw: torch.Generator) -> Images:
    """One of each image, within the range of all images; what is set in is of any image in the batch."""
    others = images[torch.randperm(len(images), generator=draw).to(images.device)]
    mixed = torch.stack([_inset(*pair, draw) for pair in zip(images, others, strict=True)])
    cut = torch.stack([_enlarged(image, draw) for image in mixed])
    darkest, lightest = images.amin((0, 2, 3), keepdim=True), images.amax((0, 2, 3), keepdim=True)
    return _recoloured(cut, draw).clamp(darkest, lightest)


def _inset(
    image: Float[Tensor, "3 height width"], other: Float[Tensor, "3 height width"], draw: torch.Generator
) -> Float[Tensor, "3 height width"]:
    """A rectangle of ``other`` in the same place of ``image``."""
    rows, columns = (_span(side, _uniform(draw, *_PATCH_SIDE), draw) for side in image.shape[1:])
    mixed = image.clone()
    mixed[:, rows, columns] = other[:, rows, columns]
    return mixed


def _enlarged(image: Float[Tensor, "3 height width"], draw: torch.Generator) -> Float[Tensor, "3 height width"]:
    """A part of the image, as large as the whole."""
    share = _uniform(draw, *_CROP_AREA) ** 0.5
    rows, columns = (_span(side, share, draw) for side in image.shape[1:])
    part = image[None, :, rows, columns]
    return F.interpolate(part, size=image.shape[1:], mode="bicubic", align_corners=False)[0]


def _recoloured(images: Images, draw: torch.Generator) -> Images:
    """Each image more or less saturated, brighter or darker, of more or less contrast."""

    def one_each(low: float, high: float) -> Float[Tensor, "images 1 1 1"]:
        return (low + (high - low) * torch.rand(len(images), 1, 1, 1, generator=draw)).to(images)

    grey = images.mean(1, keepdim=True)
    light = (_BRIGHTNESS * torch.randn(len(images), 1, 1, 1, generator=draw)).to(images)
    return (grey + (images - grey) * one_each(*_SATURATION)) * one_each(*_CONTRAST) + light


def _span(side: int, share: float, draw: torch.Generator) -> slice:
    """A part of the side, somewhere in it."""
    length = max(1, round(side * share))
    start = int(torch.randint(side - length + 1, (), generator=draw))
    return slice(start, start + length)


def _uniform(draw: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=draw))

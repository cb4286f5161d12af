"""Smooth, saturated copies of calibration images."""

import torch.nn.functional as F

from psaq.images.batches import Images

_PATCH = 16  # pixels that become one colour
_CONTRAST = 4


def flat_copies(batches: list[Images], count: int) -> list[Images]:
    """Copies of the first ``count`` images in the batches, made flat and of high contrast.

    Photographs have patches of one colour, black and white among them: they cause the largest activations of the
    first blocks. Images optimised for diverse patches have none, so that ranges read from them would be too small.
    """
    copies, left = [], count
    for batch in batches:
        if left > 0:
            copies.append(flat_copy(batch[:left]))
            left -= len(batch)
    return copies


def flat_copy(images: Images) -> Images:
    """Averaged over 16 × 16 pixels, contrast times 4 about each image's mean, within the range of all images."""
    height, width = images.shape[-2:]
    coarse = F.adaptive_avg_pool2d(images, (max(1, height // _PATCH), max(1, width // _PATCH)))
    smooth = F.interpolate(coarse, size=(height, width), mode="bilinear")
    mean = images.mean((2, 3), keepdim=True)
    darkest, lightest = images.amin((0, 2, 3), keepdim=True), images.amax((0, 2, 3), keepdim=True)
    return (mean + _CONTRAST * (smooth - mean)).clamp(darkest, lightest)

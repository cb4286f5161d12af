"""Calibration images that cannot be right, or that are hardly meant: refused, or said once, with the figure seen."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.models.data import find_data
from psaq.progress import note

_BRIGHT = 32.0
"""No normalisation of [0, 1] that is in use reaches half of this; pixels up to 255 do, unless all are nearly black."""


def check_plausible(model: nn.Module, batches: Sequence[Float[Tensor, "images channels height width"]]) -> None:
    """Look at images that a model is to be calibrated on.

    Raises:
        PsaqError: pixels in [0, 255] for a model that takes normalised ones.
    """
    low, high = min(float(batch.min()) for batch in batches), max(float(batch.max()) for batch in batches)
    flat = sum(_of_one_colour(batch) for batch in batches)
    count = sum(map(len, batches))
    if flat:
        note(f"{flat} of {count} calibration images are of one colour each: nothing can be learnt from them")
    config = find_data(model)
    if config is None or low < 0 or not all(config.std):  # a deviation of zero says nothing of how images are made
        return
    black = min(-mean / std for mean, std in zip(config.mean, config.std, strict=True))
    white = max((1 - mean) / std for mean, std in zip(config.mean, config.std, strict=True))
    if high > _BRIGHT > white:
        raise PsaqError(
            f"images from {low:.4g} to {high:.4g}: look like pixels in [0, 255], and the model takes them normalised, "
            f"from {black:.4g} to {white:.4g}: (pixels / 255 - mean) / std"
        )
    if 0 < high <= 1 and black < 0 and not flat:
        note(
            f"calibration images from {low:.4g} to {high:.4g} look like pixels in [0, 1], and the model takes them "
            f"normalised, from {black:.4g} to {white:.4g}: (pixels - mean) / std"
        )


def check_enough(count: int, in_order: bool) -> None:
    """Say so where one image is all that a recipe's statistics come from."""
    if count == 1 and in_order:
        note("1 calibration image alone: this recipe fits weights to what it sees; give 8 or more")


def _of_one_colour(images: Float[Tensor, "images channels height width"]) -> int:
    spread = images.flatten(2).amax(2) - images.flatten(2).amin(2)
    return int((spread == 0).all(1).sum())

"""From a picture to what a model was trained on: resized, cropped, normalised."""

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms import functional

from psaq.errors import PsaqError
from psaq.models.zoo import DataConfig, data_config

_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Preprocessing:
    """Resize so that the crop keeps ``crop_pct`` of the side, crop the centre, normalise.

    The shorter side is resized to floor(size / crop_pct). An image that is at most a pixel larger is cropped as it
    is: resampling would only blur it. Where the crop cannot lie in the very centre, it lies half a pixel up and left.
    For a model of one channel the picture turns grey.

    Raises:
        PsaqError: ``crop_pct`` outside of (0, 1], or channels that no picture has.
    """

    config: DataConfig

    def __post_init__(self) -> None:
        check_crop_pct(self.config.crop_pct)
        if self.config.channels not in _MODES:
            raise PsaqError(
                f"images of {self.config.channels} channels: a picture file has 1 or 3; "
                "pass a tensor (images, channels, height, width) in the files' place"
            )

    def __call__(self, image: Image.Image) -> Float[Tensor, "channels height width"]:
        cropped = _centre_crop(self._resized(self.coloured(image)), self.config.image_size)
        return functional.normalize(functional.to_tensor(cropped), self.config.mean, self.config.std)

    def coloured(self, image: Image.Image) -> Image.Image:
        """The picture with as many channels as the model takes."""
        return image.convert(_MODES[self.config.channels])

    def _resized(self, image: Image.Image) -> Image.Image:
        height, width = (math.floor(side / self.config.crop_pct) for side in self.config.image_size)
        if 0 <= min(image.height - height, image.width - width) <= 1:
            return image
        scale = max(Fraction(height, image.height), Fraction(width, image.width))
        size = [int(image.height * scale), int(image.width * scale)]
        return functional.resize(image, size, transforms.InterpolationMode(self.config.interpolation))


def check_crop_pct(crop_pct: float | None) -> None:
    """Raise PsaqError unless ``crop_pct`` is None or a part of a side."""
    if crop_pct is not None and not 0 < crop_pct <= 1:
        raise PsaqError(f"crop_pct {crop_pct}: must lie above 0 and be at most 1")


def preprocessing_for(model: nn.Module, crop_pct: float | None = None) -> Preprocessing:
    """The model's own preprocessing, with another crop where one is given. Raises PsaqError as `Preprocessing`."""
    config = data_config(model)
    return Preprocessing(config if crop_pct is None else replace(config, crop_pct=crop_pct))


def read_image(source: Path | IO[bytes], name: str) -> Image.Image:
    """An image in RGB as its pixels are stored, whichever way EXIF would turn them: masks and boxes are counted on
    those. Of a file of several the first; what is transparent in it is not.

    Raises:
        PsaqError: it is damaged, or does not say which of its numbers are black and white; with its ``name``.
    """
    try:
        with Image.open(source) as image:
            if image.mode.startswith("I;16"):  # convert would take all above 255 for white
                levels = np.asarray(image).astype(np.float64) / 257
                return Image.fromarray(levels.round().astype(np.uint8)).convert("RGB")
            if image.mode in ("I", "F"):
                raise ValueError("its pixels are 32-bit numbers, and nothing says which are black and white")
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PsaqError(f"{name}: is not an image that can be read ({error}); replace or remove it") from error


def _centre_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    height, width = size
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))

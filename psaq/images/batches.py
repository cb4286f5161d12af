"""One door for calibration images: synthesised, real or noise, as a tensor, a container or batches."""

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.images.synthetic import SyntheticImages
from psaq.models.zoo import data_config

Images = Float[Tensor, "images 3 height width"]
CalibrationImages = Tensor | SyntheticImages | Iterable[Tensor]


def image_batches(images: CalibrationImages, batch_size: int, like: Tensor | None = None) -> Iterator[Images]:
    """Batches of at most ``batch_size`` images in the model's normalised space, in order.

    Args:
        like: a parameter of the model that shall take them, whose device and type they get.

    Raises:
        PsaqError: no image at all, a path in their place, not (images, 3, height, width), or NaN and infinity among
            the pixels.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise PsaqError(f"batch_size {batch_size}: must be a whole number, at least 1")
    count = 0
    for source in _tensors(images):
        _check_images(source)
        for batch in source.split(batch_size):
            if len(batch):
                count += len(batch)
                yield batch if like is None else batch.to(like)
    if count == 0:
        raise PsaqError("0 images: calibration needs at least one")


def gaussian_images(model: nn.Module, count: int, seed: int = 0) -> Images:
    """Standard normal noise of the model's input size, in its normalised space: Table 1's "Gaussian"."""
    if count < 1:
        raise PsaqError(f"{count} images: must be at least 1")
    height, width = data_config(model).image_size
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def _tensors(images: CalibrationImages) -> Iterator[Tensor]:
    if isinstance(images, SyntheticImages):
        yield images.images
    elif isinstance(images, Tensor):
        yield images
    elif isinstance(images, str | bytes) or not isinstance(images, Iterable):
        raise PsaqError(
            f"images {images!r}: must be a tensor, batches, or what psaq.load_images reads from a folder of psaq"
        )
    else:
        for batch in images:
            yield batch[0] if isinstance(batch, list | tuple) else batch


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor):
        raise PsaqError(f"images hold a {type(images).__name__}: a batch must be a tensor (images, 3, height, width)")
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise PsaqError(
            f"images of shape {tuple(images.shape)} and type {images.dtype}: must be floating point "
            "(images, 3, height, width), normalised as the model wants them"
        )
    if not torch.isfinite(images).all():
        raise PsaqError("images: hold NaN or infinity; synthesise or load them anew")

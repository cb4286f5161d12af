"""One door for calibration images: synthesised, real or noise, as a tensor, a container or batches."""

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.images.pictures import normalised_for
from psaq.images.synthetic import SyntheticImages
from psaq.models.data import data_config, find_data, network_data
from psaq.models.image_format import renormalised
from psaq.models.place import tensor_of

Images = Float[Tensor, "images channels height width"]
CalibrationImages = Tensor | SyntheticImages | Iterable[Tensor]


def image_batches(
    images: CalibrationImages, batch_size: int, like: Tensor | None = None, channels: int | None = 3
) -> Iterator[Images]:
    """Batches of at most ``batch_size`` images in the model's normalised space, in order.

    Args:
        like: a parameter of the model that shall take them, whose device and type they get.
        channels: how many the model takes (`data_config`); None where any will do.

    Raises:
        PsaqError: no image at all, a path in their place, not (images, channels, height, width), or NaN and infinity
            among the pixels.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise PsaqError(f"batch_size {batch_size}: must be a whole number, at least 1")
    count = 0
    for source in _tensors(images):
        _check_images(source, channels)
        for batch in source.split(batch_size):
            if len(batch):
                count += len(batch)
                yield batch if like is None else batch.to(like)
    if count == 0:
        raise PsaqError("0 images: calibration needs at least one")


def batches_for(model: nn.Module, images: CalibrationImages, batch_size: int) -> Iterator[Images]:
    """`image_batches` on the model's device, in its type, with its number of channels where that is known; images that
    were synthesised from another model in this one's normalisation."""
    config = find_data(model)
    if config is not None and isinstance(images, SyntheticImages):
        images = normalised_for(model, images)
    yield from image_batches(images, batch_size, tensor_of(model), None if config is None else config.channels)


def gaussian_images(model: nn.Module, count: int, seed: int = 0) -> Images:
    """Noise of the model's input size, standard normal as its network gets it: Table 1's "Gaussian"."""
    if count < 1:
        raise PsaqError(f"{count} images: must be at least 1")
    config, network = data_config(model), network_data(model)
    draw = torch.Generator().manual_seed(seed)
    return renormalised(torch.randn(count, config.channels, *config.image_size, generator=draw), network, config)


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


def _check_images(images: Tensor, channels: int | None) -> None:
    shape = f"(images, {channels or 'channels'}, height, width)"
    if not isinstance(images, Tensor):
        raise PsaqError(f"images hold a {type(images).__name__}: a batch must be a tensor {shape}")
    if images.ndim != 4 or channels not in (None, images.shape[1]):
        raise PsaqError(f"images of shape {tuple(images.shape)}: must be {shape}{_way_out(images, channels)}")
    if not images.is_floating_point():
        raise PsaqError(f"images of type {images.dtype}: must be floating point, normalised as the model wants them")
    if not torch.isfinite(images).all():
        raise PsaqError("images: hold NaN or infinity; synthesise or load them anew")


def _way_out(images: Tensor, channels: int | None) -> str:
    if images.ndim == 3 and channels in (None, images.shape[0]):
        return "; a single image is images[None]"
    if images.ndim == 4 and channels == images.shape[-1]:
        return "; their channels come last: images.permute(0, 3, 1, 2)"
    return ""

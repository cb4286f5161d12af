"""What images a model takes: their size, their channels, and how pixel values are normalised."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

Size = tuple[int, int]
Values = tuple[float, ...]


@dataclass(frozen=True)
class DataConfig:
    """How a model wants its images: size in pixels, interpolation, crop, and per-channel mean and std of [0, 1]."""

    image_size: Size
    mean: Values
    std: Values
    interpolation: str = "bicubic"
    crop_pct: float = 0.875

    @property
    def channels(self) -> int:
        """How many channels an image has."""
        return len(self.mean)


def renormalised(
    images: Float[torch.Tensor, "... channels height width"], before: DataConfig, after: DataConfig
) -> Float[torch.Tensor, "... channels height width"]:
    """The same pixels in another normalisation."""
    if (before.mean, before.std) == (after.mean, after.std):
        return images
    mean, std, new_mean, new_std = (
        torch.tensor(values, device=images.device, dtype=images.dtype)[:, None, None]
        for values in (before.mean, before.std, after.mean, after.std)
    )
    return (images * std + mean - new_mean) / new_std


def imagenet_format(size: Size, channels: int, interpolation: str = "bicubic", crop_pct: float = 0.875) -> DataConfig:
    """Images of that size, normalised by ImageNet's statistics."""
    mean, std = fitted(IMAGENET_DEFAULT_MEAN, channels), fitted(IMAGENET_DEFAULT_STD, channels)
    return DataConfig(size, mean, std, interpolation, crop_pct)


def fitted(values: Sequence[float] | float, channels: int) -> Values:
    """Statistics stated for other channels than a model has, as timm makes its first convolution's weights: what a
    single channel gets is the mean over all, more channels repeat the stated ones."""
    values = (values,) if isinstance(values, int | float) else values
    if len(values) == channels:
        return tuple(values)
    if channels == 1:
        return (sum(values) / len(values),)
    return tuple(values[channel % len(values)] for channel in range(channels))


def square(size: int | Sequence[int]) -> Size:
    """A size as (height, width); of a single number both sides."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def input_channels(model: nn.Module, default: int = 3) -> int:
    """How many channels the first convolution takes, or whatever names its ``in_chans``; ``default`` without either."""
    for module in model.modules():
        if isinstance(stated := getattr(module, "in_chans", None), int):
            return stated
        weight, channels = getattr(module, "weight", None), getattr(module, "in_channels", None)
        if isinstance(channels, int) and isinstance(weight, torch.Tensor) and weight.ndim == 4:
            return channels
    return default

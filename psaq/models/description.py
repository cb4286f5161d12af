"""What a model cannot say of itself, told by who built it."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from torch import nn

from psaq.choices import TaskName
from psaq.errors import PsaqError
from psaq.models.calling import TAKES, Takes
from psaq.models.data import find_data
from psaq.models.heads import checked_task
from psaq.models.image_format import DataConfig, Size, Values, fitted, input_channels, square
from psaq.models.wrappers import innermost

Model = TypeVar("Model", bound=nn.Module)


def describe(
    model: Model,
    *,
    image_size: int | Sequence[int] | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    takes: Takes | None = None,
    task: TaskName | None = None,
) -> Model:
    """Tell psaq what it would have to guess of a model; whatever is left out stays as it is found.

    Args:
        image_size: height and width in pixels; one number stands for both.
        mean: what is subtracted from pixels in [0, 1], a value per channel or one for all.
        std: what the difference is divided by, likewise.
        takes: what the model is called with: a "batch" (images, channels, height, width), a "list" of images, or
            "pixel_values" by that name.
        task: what the model is for: "classification", "segmentation", "detection" or "features".

    Returns:
        The model itself; what was told stands in its attributes ``psaq_data``, ``psaq_takes``, ``psaq_task``, of a
            wrapped one inside the wrappers.

    Raises:
        PsaqError: a value that cannot be, or no ``image_size`` where nothing else names one.
    """
    if not isinstance(model, nn.Module):
        raise PsaqError(f"model {model!r}: describe takes a torch.nn.Module; psaq.load_model makes one of a name")
    if takes is not None and takes not in TAKES:
        raise PsaqError(f"takes {takes!r}: must be one of {', '.join(TAKES)}")
    told: dict[str, object] = {"psaq_takes": takes, "psaq_task": None if task is None else checked_task(task)}
    if any(value is not None for value in (image_size, mean, std)):
        told["psaq_data"] = _data(model, None if image_size is None else _size(image_size), mean, std)
    for name, value in told.items():
        if value is not None:
            setattr(innermost(model), name, value)
    return model


def _data(
    model: nn.Module, size: Size | None, mean: float | Sequence[float] | None, std: float | Sequence[float] | None
) -> DataConfig:
    found = find_data(model, size)
    if found is None:
        raise PsaqError(f"{type(model).__name__}: nothing says what size its images have; give image_size as well")
    channels = _channels(model, found, mean, std)
    means = fitted(found.mean, channels) if mean is None else _values("mean", mean, channels)
    stds = fitted(found.std, channels) if std is None else _values("std", std, channels)
    if min(stds) <= 0:
        raise PsaqError(f"std {std}: must lie above 0 in every channel")
    return replace(found, mean=means, std=stds)


def _channels(model: nn.Module, found: DataConfig, *values: float | Sequence[float] | None) -> int:
    """As many as statistics were told for, which must be what the model takes."""
    told = {len(value) for value in values if isinstance(value, Sequence)}
    channels = told.pop() if told else found.channels
    takes = input_channels(model, channels)
    if told or channels not in (takes, found.channels):
        raise PsaqError(
            f"mean and std for {', '.join(map(str, sorted({channels, *told})))} channels: "
            f"the model takes {takes}; give one value for each, or one for all"
        )
    return channels


def _values(name: str, told: float | Sequence[float], channels: int) -> Values:
    values = tuple(told) if isinstance(told, Sequence) else (told,) * channels
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        raise PsaqError(f"{name} {told!r}: must be finite numbers, one for each channel or one for all")
    return tuple(float(value) for value in values)


def _size(told: int | Sequence[int]) -> Size:
    sides = (told, told) if isinstance(told, int) else told
    numbers = isinstance(sides, Sequence) and all(isinstance(side, int) and side >= 1 for side in sides)
    if not numbers or len(sides) != 2:
        raise PsaqError(f"image_size {told!r}: must be pixels, a number for a square or a pair (height, width)")
    return square(sides)

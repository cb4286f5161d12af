"""What images a model of transformers takes, from its image processor or its configuration."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from psaq.models.image_format import DataConfig, Size, fitted, imagenet_format, input_channels, square

INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_NESTED = ("vision_config", "backbone_config", "encoder_config")
_VISION_TYPE = "_vision_model"


def is_transformers(model: nn.Module) -> bool:
    """Whether a module is one of transformers' models, without importing transformers."""
    bases = type(model).__mro__
    return any((base.__module__, base.__name__) == ("transformers.modeling_utils", "PreTrainedModel") for base in bases)


def transformers_data(model: nn.Module) -> DataConfig | None:
    """Size from the configuration, the rest as the image processor of its model type does by default; None for any
    other module, and where neither states a size."""
    if not is_transformers(model):
        return None
    config: Any = model.config
    channels, size = input_channels(model), config_size(config)
    default = _default_data(config.model_type, channels)
    if default is None:
        return None if size is None else imagenet_format(size, channels)
    return replace(default, image_size=size or default.image_size)


def processor_data(processor: Any, channels: int) -> DataConfig | None:
    """What an image processor does to an image; None where it names no size."""
    size = _processor_size(processor)
    if size is None:
        return None
    mean, std = _statistics(processor)
    interpolation = INTERPOLATIONS.get(getattr(processor, "resample", -1), "bicubic")
    return DataConfig(size, fitted(mean, channels), fitted(std, channels), interpolation, _crop_pct(processor, size))


def config_size(config: Any) -> Size | None:
    """The image size that a configuration, or the one of its backbone, was made for."""
    size = getattr(config, "image_size", None)
    if isinstance(size, int) or (isinstance(size, tuple | list) and len(size) == 2):
        return square(size)
    if isinstance(size, Mapping) and {"height", "width"} <= size.keys():
        return square((size["height"], size["width"]))
    parts = (getattr(config, name, None) for name in _NESTED)
    return next((found for part in parts if part is not None and (found := config_size(part))), None)


def processor_class(model_type: str) -> Any:
    """The class of image processors that transformers takes for a model type; None where it has none."""
    import transformers
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    names = IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type.removesuffix(_VISION_TYPE), {})
    name = names.get("torchvision") if isinstance(names, Mapping) else None
    return None if name is None else getattr(transformers, name)


def _default_data(model_type: str, channels: int) -> DataConfig | None:
    processor = processor_class(model_type)
    return None if processor is None else processor_data(processor(), channels)


def _processor_size(processor: Any) -> Size | None:
    """The centre crop's size where there is one, else what images are resized to; of a shortest edge alone a square."""
    crop = getattr(processor, "crop_size", None)
    if crop and getattr(processor, "do_center_crop", None):
        return _sides(crop)
    return _sides(getattr(processor, "size", None))


def _sides(size: Any) -> Size | None:
    if isinstance(size, int):
        return square(size)
    sides = dict(size or {})
    if sides.get("height") and sides.get("width"):
        return square((sides["height"], sides["width"]))
    edge = sides.get("shortest_edge") or sides.get("longest_edge")
    return None if edge is None else square(edge)


def _statistics(processor: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of pixels in [0, 1], whatever range the processor brings them to before it normalises."""
    mean, std = (0.0,) * 3, (1.0,) * 3
    if getattr(processor, "do_normalize", None):
        mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    scale = 255 * processor.rescale_factor if getattr(processor, "do_rescale", True) else 255
    # 255 · (1/255) is not quite 1 for every way of writing 1/255: stated statistics are kept to the bit.
    if abs(scale - 1) < 1e-6:
        return mean, std
    return tuple(value / scale for value in mean), tuple(value / scale for value in std)


def _crop_pct(processor: Any, size: Size) -> float:
    """The part of the resized side that is kept."""
    stated = getattr(processor, "crop_pct", None)
    if stated:
        return float(stated)
    resized = _sides(getattr(processor, "size", None))
    return min(1.0, min(size) / min(resized)) if resized else 1.0

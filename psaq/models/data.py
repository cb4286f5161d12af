"""What images any model takes: what it was told, what its library knows, or what its attributes say."""

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from psaq.errors import PsaqError
from psaq.models.image_format import DataConfig, Size, imagenet_format, input_channels, square
from psaq.models.timm_data import timm_data
from psaq.models.torchvision_models import own_statistics, torchvision_data
from psaq.models.transformers_data import transformers_data
from psaq.models.wrappers import innermost

__all__ = ["DataConfig", "data_config", "find_data", "network_data"]

_LIBRARIES: tuple[Callable[[nn.Module], DataConfig | None], ...] = (transformers_data, torchvision_data, timm_data)
_SIZE_NAMES = ("image_size", "img_size")


def data_config(model: nn.Module) -> DataConfig:
    """The images that a model was trained on.

    What `psaq.describe` or an image processor said counts first, then what timm, transformers or torchvision knows
    of the model or of the first part that is theirs. Of a module of one's own the attributes ``image_size`` or
    ``img_size`` and its first convolution are asked, and ImageNet's statistics are taken.

    Raises:
        PsaqError: nothing names a size.
    """
    found = find_data(model)
    if found is None:
        raise PsaqError(
            f"{type(model).__name__}: nothing says what size its images have; "
            "say it: psaq.describe(model, image_size=…, mean=…, std=…)"
        )
    return found


def network_data(model: nn.Module) -> DataConfig:
    """`data_config`, but of a detector that takes pixels in [0, 1] the statistics by which it normalises them itself:
    the space that its network works in. Raises PsaqError as `data_config`."""
    found, own = data_config(model), own_statistics(getattr(model, "psaq_body", model))
    return found if own is None else replace(found, mean=own[0], std=own[1])


def find_data(model: nn.Module, size: Size | None = None) -> DataConfig | None:
    """What `data_config` gives, for images of ``size`` where one is told; None where nothing names one."""
    model = innermost(model)
    model = getattr(model, "psaq_body", model)
    told = getattr(model, "psaq_data", None)
    if told is not None:
        return told if size is None else replace(told, image_size=size)
    known = next(filter(None, map(_of_library, model.modules())), None)
    if known is not None:
        return replace(known, image_size=size or _own_size(model) or known.image_size)
    size = size or next(filter(None, map(_own_size, model.modules())), None)
    return None if size is None else imagenet_format(size, input_channels(model))


def _of_library(module: nn.Module) -> DataConfig | None:
    return next((config for read in _LIBRARIES if (config := read(module)) is not None), None)


def _own_size(module: nn.Module) -> Size | None:
    """The size that a module names itself, as a number or a pair."""
    for name in _SIZE_NAMES:
        size = getattr(module, name, None)
        if isinstance(size, int) and not isinstance(size, bool):
            return square(size)
        if isinstance(size, tuple | list) and len(size) == 2 and all(isinstance(side, int) for side in size):
            return square(size)
    return None

"""What a model calls its classes, and which class a user means."""

from collections.abc import Sequence
from functools import cache

from timm.data import ImageNetInfo
from torch import nn

from psaq.errors import PsaqError
from psaq.models.zoo import num_classes

IMAGENET_CLASSES = 1000


def class_names(model: nn.Module) -> list[str]:
    """The names of a model's classes: its own, ImageNet's for one of 1000 classes, else "class 0", "class 1", …"""
    count = num_classes(model)
    own = (getattr(model, "pretrained_cfg", None) or {}).get("label_names")
    if own is not None and len(own) == count:
        return list(own)
    if count == IMAGENET_CLASSES:
        return list(_imagenet_names())
    return [f"class {index}" for index in range(count)]


def find_class(names: Sequence[str], wanted: str) -> int:
    """The index of a class by number, by name, or by a part of a name that only one class has.

    Raises:
        PsaqError: no class or several are meant.
    """
    if wanted.isdigit() and int(wanted) < len(names):
        return int(wanted)
    folded = [name.casefold() for name in names]
    if wanted.casefold() in folded:
        return folded.index(wanted.casefold())
    found = [index for index, name in enumerate(folded) if wanted.casefold() in name]
    if len(found) != 1:
        several = f"means {', '.join(names[index] for index in found[:4])}" if found else "is none of the model's"
        raise PsaqError(f"class {wanted!r}: {several}; give a name or a number from 0 to {len(names) - 1}")
    return found[0]


@cache
def _imagenet_names() -> tuple[str, ...]:
    info = ImageNetInfo("imagenet-1k")
    return tuple(info.index_to_description(index).split(",")[0] for index in range(IMAGENET_CLASSES))

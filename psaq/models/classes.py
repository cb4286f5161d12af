"""What a model calls its classes, and which class a user means."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from timm.data import ImageNetInfo
from torch import nn

from psaq.errors import PsaqError
from psaq.models.transformers_data import is_transformers
from psaq.models.zoo import num_classes

IMAGENET_CLASSES = 1000


def class_names(model: nn.Module) -> list[str]:
    """The names of a model's classes: its own, ImageNet's for one of 1000 classes, else "class 0", "class 1", …"""
    count = num_classes(model)
    own = _own_names(model)
    if len(own) == count:
        return own
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


def _own_names(model: nn.Module) -> list[str]:
    """What timm's or transformers' configuration calls the classes; nothing where it only numbers them."""
    if is_transformers(model):
        config: Any = model.config
        names = [config.id2label[index] for index in sorted(config.id2label)]
        return [] if names == [f"LABEL_{index}" for index in range(len(names))] else names
    return list((getattr(model, "pretrained_cfg", None) or {}).get("label_names") or ())


@cache
def _imagenet_names() -> tuple[str, ...]:
    info = ImageNetInfo("imagenet-1k")
    return tuple(info.index_to_description(index).split(",")[0] for index in range(IMAGENET_CLASSES))

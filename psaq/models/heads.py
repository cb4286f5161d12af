"""How many classes a model tells apart, where it does."""

from typing import Any, get_args

from torch import nn

from psaq.choices import TaskName
from psaq.errors import PsaqError
from psaq.models.calling import takes
from psaq.models.torchvision_models import is_torchvision, torchvision_classes
from psaq.models.transformers_data import is_transformers
from psaq.models.wrappers import innermost

_CLASSIFIER = "ForImageClassification"
TASKS: tuple[TaskName, ...] = get_args(TaskName)
"""What a model may be for."""
_CLASSIFYING: TaskName = "classification"


def checked_task(told: Any) -> TaskName:
    """A task by name. Raises PsaqError where there is no such task."""
    if told not in TASKS:
        raise PsaqError(f"task {told!r}: must be one of {', '.join(TASKS)}")
    return told


def num_classes(model: nn.Module) -> int:
    """The number of classes the model's head tells apart. Raises PsaqError where the model names none."""
    classes = classes_or_none(model)
    if classes is None:
        raise PsaqError(f"{type(model).__name__}: names no number of classes; pass a classifier with num_classes ≥ 1")
    return classes


def label_names(model: nn.Module) -> dict[int, str]:
    """What a model of transformers calls its labels, by number; empty where nobody named them."""
    config: Any = getattr(getattr(model, "psaq_body", model), "config", None)
    names = {int(index): str(name) for index, name in (getattr(config, "id2label", None) or {}).items()}
    return {} if all(name == f"LABEL_{index}" for index, name in names.items()) else names


def says_nothing_of_classes(model: nn.Module) -> bool:
    """Whether nothing of a model says whether it tells classes apart: a module of one's own without ``num_classes``."""
    model = innermost(model)
    told = any(hasattr(model, name) for name in ("psaq_classes", "psaq_task", "num_classes"))
    return not told and takes(model) == "batch" and not is_transformers(model)


def classes_or_none(model: nn.Module) -> int | None:
    """The number of classes of a classifier; None of an encoder, a segmenter, a detector, or a head of no class."""
    model = innermost(model)
    if hasattr(model, "psaq_classes"):
        return model.psaq_classes  # type: ignore[return-value]
    if getattr(model, "psaq_task", _CLASSIFYING) != _CLASSIFYING or takes(model) == "list":
        return None
    if is_transformers(model):
        config = model.config
        return int(config.num_labels) if _CLASSIFIER in type(model).__name__ else None  # type: ignore[union-attr, arg-type]
    if is_torchvision(model):
        return torchvision_classes(model)
    classes = getattr(model, "num_classes", None)
    return classes if isinstance(classes, int) and classes >= 1 else None

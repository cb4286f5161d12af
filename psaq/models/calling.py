"""How a model is called with a batch of images, and which tensors are in what it gives."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.models.torchvision_models import DETECTORS
from psaq.models.wrappers import innermost

Takes = Literal["batch", "list", "pixel_values"]
"""A tensor of images; a list of images, which may differ in size; a tensor by the name that transformers gives it."""

TAKES: tuple[Takes, ...] = get_args(Takes)
_PIXELS: Takes = "pixel_values"
_LISTS = ("list[", "List[", "typing.List[", "Sequence[", "collections.abc.Sequence[", "typing.Sequence[")


def takes(model: nn.Module) -> Takes:
    """What a model is called with: as `psaq.describe` was told, else as its forward's parameters say."""
    model = innermost(model)
    told = getattr(model, "psaq_takes", None)
    if told is not None:
        return told
    if isinstance(model, DETECTORS):
        return "list"
    parameters = _parameters(model)
    if any(parameter.name == _PIXELS for parameter in parameters):
        return _PIXELS
    return "list" if parameters and _is_list(parameters[0].annotation) else "batch"


def run(
    model: nn.Module,
    images: Float[Tensor, "images channels height width"] | Sequence[Float[Tensor, "channels height width"]],
) -> Any:
    """The model's own output for images, given as it takes them. Raises PsaqError for images of several sizes where it
    takes them as one tensor."""
    match takes(model):
        case "list":
            return model(list(images))
        case "pixel_values":
            return model(pixel_values=_stacked(images))
        case _:
            return model(_stacked(images))


def logits_of(output: Any) -> Float[Tensor, "images classes"] | None:
    """What a classifier says of each class: the output, its ``logits``, or the first of several; None of anything that
    is not a row for each image."""
    if isinstance(output, tuple | list):
        output = output[0] if output and isinstance(output[0], Tensor) else None
    elif not isinstance(output, Tensor):
        output = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    return output if isinstance(output, Tensor) and output.ndim == 2 else None


def tensors_of(output: Any) -> list[Float[Tensor, "..."]]:
    """Every floating-point tensor in an output, however nested, in the order in which the output lists them."""
    return list(_tensors(output))


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
        return
    for part in _parts(output):
        yield from _tensors(part)


def _stacked(images: Tensor | Sequence[Tensor]) -> Tensor:
    if isinstance(images, Tensor):
        return images
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise PsaqError(f"images of shapes {', '.join(map(str, sorted(shapes)))}: the model takes one size at a time")
    return torch.stack(list(images))


def named_parts(output: Any) -> Mapping[str, Any]:
    """An output's parts by name, of a mapping or a dataclass; none of anything else."""
    if isinstance(output, Mapping):
        return output
    if is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name) for field in fields(output)}
    return {}


def _parts(output: Any) -> list[Any]:
    if isinstance(output, Mapping):
        return list(output.values())
    if is_dataclass(output) and not isinstance(output, type):
        return [getattr(output, field.name) for field in fields(output)]
    return list(output) if isinstance(output, tuple | list) else []


def _parameters(model: nn.Module) -> list[inspect.Parameter]:
    """What a forward takes; nothing of one that is not written in Python."""
    try:
        return list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return []


def _is_list(annotation: Any) -> bool:
    """Whether a parameter is a list of something, its type written out or kept as text."""
    return (annotation if isinstance(annotation, str) else str(annotation)).startswith(_LISTS)

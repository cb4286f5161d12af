"""The few calls of the framework that quantisation and patch features care about, whoever wrote the model."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Kind = Literal["layer", "product", "sum", "join"]
"""A linear or convolution layer's, a product of two tensors (attention's), an addition, a concatenation."""

Function = Callable[..., Any]

attention = F.scaled_dot_product_attention

_LAYERS: tuple[Function, ...] = (
    F.linear,
    F.conv1d,
    F.conv2d,
    F.conv3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    torch.addmm,
    Tensor.addmm,
)
_PRODUCTS: tuple[Function, ...] = (
    attention,
    torch.matmul,
    Tensor.matmul,
    torch.bmm,
    Tensor.bmm,
    torch.mm,
    Tensor.mm,
    torch.einsum,
    torch.baddbmm,
    Tensor.baddbmm,
)
_SUMS: tuple[Function, ...] = (torch.add, Tensor.add, Tensor.add_)
_JOINS: tuple[Function, ...] = (torch.cat, torch.concat)

KINDS: dict[Function, Kind] = {
    **dict.fromkeys(_LAYERS, "layer"),
    **dict.fromkeys(_PRODUCTS, "product"),
    **dict.fromkeys(_SUMS, "sum"),
    **dict.fromkeys(_JOINS, "join"),
}

_MATMULS = (torch.matmul, Tensor.matmul)
_ADDED_PRODUCT = (torch.addmm, Tensor.addmm, torch.baddbmm, Tensor.baddbmm)


def layer_operands(function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """(input, weight, bias) of a layer's call."""
    if function in _ADDED_PRODUCT:
        bias, input, weight = _named(args, kwargs, ("input", "mat1", "mat2"))
        return input, weight, bias
    input, weight, bias = _named(args, kwargs, ("input", "weight", "bias"))
    return input, weight, bias


def with_layer_operands(
    function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any], input: Tensor, weight: Tensor
) -> Tensor:
    """The layer called anew, with another input and weight."""
    if function in _ADDED_PRODUCT:
        names, now = ("input", "mat1", "mat2"), {"mat1": input, "mat2": weight}
    else:
        names, now = ("input", "weight", "bias"), {"input": input, "weight": weight}
    placed = (now.get(name, given) for name, given in zip(names, args, strict=False))
    return function(*placed, *args[len(names) :], **{name: now.get(name, given) for name, given in kwargs.items()})


def layer_geometry(function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a convolution's call says beside its operands: stride, padding, dilation, groups."""
    if function is F.linear or function in _ADDED_PRODUCT:
        return {}
    transposed = function in (F.conv_transpose1d, F.conv_transpose2d)
    names = ("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")
    given = dict(zip(("stride", "padding", *names), args[3:], strict=False))
    return {**given, **{name: value for name, value in kwargs.items() if name not in ("input", "weight", "bias")}}


def product_operands(function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """The two factors of a matrix product other than attention's. None for an einsum of one or more than two."""
    if function is torch.einsum:
        operands = args[1] if len(args) == 2 and isinstance(args[1], list | tuple) else args[1:]
        return (operands[0], operands[1]) if len(operands) == 2 else (None, None)
    if function in _ADDED_PRODUCT:
        _, left, right = _named(args, kwargs, ("input", "batch1", "batch2"))
        return left, right
    left, right = _named(args, kwargs, ("input", "other" if function in _MATMULS else "mat2"))
    return left, right


def sum_operands(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """The two addends."""
    left, right = _named(args, kwargs, ("input", "other"))
    return left, right


def with_factors(
    function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any], left: Tensor, right: Tensor
) -> Tensor:
    """The product called anew, with other factors."""
    if function is torch.einsum:
        return function(args[0], left, right)
    if function in _ADDED_PRODUCT:
        added, *_ = _named(args, kwargs, ("input", "batch1", "batch2"))
        scales = {name: kwargs[name] for name in ("alpha", "beta") if name in kwargs}
        return function(added, left, right, **scales)
    return function(left, right)


def attention_operands(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """(query, key, value, mask) of fused attention."""
    return _named(args, kwargs, ("query", "key", "value", "attn_mask"))


def name_of(function: Function) -> str:
    """A function's name; of an attribute that was read (x.T), the attribute's."""
    owner = getattr(function, "__self__", None)
    if function.__name__ == "__get__" and owner is not None:
        return owner.__name__
    return function.__name__


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and dictionaries, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif hasattr(value, "__dataclass_fields__"):
        yield from tensors_in(list(vars(value).values()))


def _named(args: tuple[Any, ...], kwargs: Mapping[str, Any], names: tuple[str, ...]) -> tuple[Any, ...]:
    """The arguments of these names, given by place or by name; None for those that are absent."""
    return tuple(args[place] if place < len(args) else kwargs.get(name) for place, name in enumerate(names))

"""Where in the image each patch feature came from, whatever windows, strides and reshapings lie between.

Beside the model's own numbers two others are followed through one run: the row and the column of the pixel that a
number came from. Where numbers are moved, these move along; where a layer mixes several, their mean remains.
"""

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from psaq.errors import PsaqError
from psaq.models.calling import run
from psaq.models.copying import copied
from psaq.models.features import record_patch_features
from psaq.models.operations import (
    KINDS,
    Function,
    attention,
    attention_operands,
    layer_geometry,
    layer_operands,
    name_of,
    product_operands,
    tensors_in,
)
from psaq.models.subclassed import without
from psaq.quantization.model.points import Quantized

Axes = tuple[Float[Tensor, "..."], Float[Tensor, "..."]]
"""Row and column of what a tensor holds, of the tensor's own shape, in pixels counted from 1; 0 is nowhere."""

# fmt: off
_MOVING = frozenset((
    "T", "__getitem__", "adaptive_avg_pool2d", "amax", "avg_pool2d", "cat", "chunk", "clone", "concat", "contiguous",
    "expand", "expand_as", "flatten", "flip", "gather", "index_select", "interpolate", "mT", "max", "max_pool2d",
    "mean", "movedim", "narrow", "pad", "permute", "pixel_shuffle", "pixel_unshuffle", "repeat", "repeat_interleave",
    "reshape", "reshape_as", "roll", "select", "split", "squeeze", "stack", "swapaxes", "swapdims", "tensor_split",
    "tile", "transpose", "unbind", "unflatten", "unfold", "unsqueeze", "view", "view_as",
))
# fmt: on
"""Functions whose results hold what they were given, in another order or averaged."""

_SAME_PLACE = 1e-3
"""Pixels. Means of the same rows differ by rounding alone."""


@torch.no_grad()
def patch_places(
    model: nn.Module, image: Float[Tensor, "channels height width"]
) -> list[Complex[Tensor, "windows patches"]]:
    """The place of every patch in each layer's patch features: row + i · column, in pixels, counted from 1; 0 where a
    patch came from no pixel, such as padding.

    Raises:
        PsaqError: the model has no self-attention.
    """
    own, follower = copied(model), _Follower(image[None])
    for module in own.modules():  # quantised modules hide what they compute
        without(module, Quantized)
    with record_patch_features(own, "separate", images=image[None], seen=follower.places_of) as recorder, follower:
        run(recorder.model, follower.images)
    return [
        rearrange(
            places[0], "(heads windows) patches channels -> heads windows patches channels", heads=site.heads
        ).mean((0, -1))
        for site, places in zip(recorder.sites, recorder.features, strict=True)
    ]


def tiling(places: Complex[Tensor, "windows patches"]) -> Int[Tensor, "rows columns"]:
    """For each place of a layer's patches over the image the position of its feature, windows in order.

    Raises:
        PsaqError: the patches do not lie in a grid.
    """
    flat = places.flatten().cpu()
    known = flat.real.nonzero().flatten()
    rows, height = _ranks(flat.real[known])
    columns, width = _ranks(flat.imag[known])
    grid = torch.full((height, width), -1)
    grid[rows, columns] = known
    if not len(known) == grid.numel() > 0 or bool((grid < 0).any()):
        windows, patches = places.shape
        raise PsaqError(f"it is not known where {windows} × {patches} patches lie in the image; choose other layers")
    return grid


def _ranks(values: Float[Tensor, " patches"]) -> tuple[Int[Tensor, " patches"], int]:
    """Which of the distinct values each one is, from the least, and how many these are."""
    ordered, order = values.sort()
    steps = (ordered.diff(prepend=ordered[:1]) > _SAME_PLACE).cumsum(0)
    return torch.empty_like(steps).scatter(0, order, steps), int(steps[-1]) + 1 if len(steps) else 0


class _Follower(TorchFunctionMode):
    def __init__(self, images: Float[Tensor, "1 channels height width"]):
        super().__init__()
        self.images = images.clone()
        """What the model is to be given."""
        self._axes: MutableMapping[Tensor, Axes] = WeakIdKeyDictionary()
        height, width = images.shape[-2:]
        rows = torch.arange(1, height + 1, dtype=torch.float64, device=images.device)[:, None]
        columns = torch.arange(1, width + 1, dtype=torch.float64, device=images.device)[None]
        self._axes[self.images] = rows.expand(images.shape), columns.expand(images.shape)

    def places_of(self, tensor: Tensor) -> Complex[Tensor, "..."]:
        """Row + i · column of what a tensor holds."""
        with torch._C.DisableTorchFunction():
            rows, columns = self._axes.get(tensor) or (torch.zeros(tensor.shape, device=tensor.device),) * 2
            return torch.complex(rows.double(), columns.double())

    def __torch_function__(
        self, function: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if not any(tensor in self._axes for tensor in tensors_in((args, kwargs))):
            return result
        with torch._C.DisableTorchFunction():
            axes = [self._followed(function, args, kwargs, result, axis) for axis in (0, 1)]
        for tensor, *followed in zip(tensors_in(result), *map(tensors_in, axes), strict=False):
            if tensor.is_floating_point():  # others are indices and masks, which stay what they are
                self._axes[tensor] = tuple(followed)
        return result

    def _followed(
        self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, axis: int
    ) -> Any:
        """Rows (axis 0) or columns (1) of what a call gave."""

        def of(tensor: Tensor | None) -> Tensor | None:
            return self._axes[tensor][axis] if tensor is not None and tensor in self._axes else None

        kind = KINDS.get(function)
        if kind == "layer":
            return _after_layer(function, args, kwargs, of(layer_operands(function, args, kwargs)[0]), result)
        if function is attention:
            query, _, value, _ = attention_operands(args, kwargs)
            return _after_product(of(query), of(value), result)
        if kind == "product" and function is not torch.einsum:
            left, right = product_operands(function, args, kwargs)
            return _after_product(of(left), of(right), result)
        if name_of(function) in _MOVING:
            return function(*self._moved(args, axis), **self._moved(kwargs, axis))
        if function is torch.nn.functional.fold:
            return _after_fold(self._moved(args, axis), kwargs)
        return _alike([of(tensor) for tensor in tensors_in((args, kwargs))], result)

    def _moved(self, value: Any, axis: int) -> Any:
        """The arguments of a call with places for numbers; indices stay."""
        if isinstance(value, Tensor):
            if value in self._axes:
                return self._axes[value][axis]
            return torch.zeros_like(value, dtype=torch.float64) if value.is_floating_point() else value
        if isinstance(value, tuple | list):
            return type(value)(self._moved(part, axis) for part in value) if type(value) in (tuple, list) else value
        if isinstance(value, dict):
            return {name: self._moved(part, axis) for name, part in value.items()}
        return value


def _after_layer(
    function: Callable[..., Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    places: Tensor | None,
    result: Tensor,
) -> Tensor | None:
    """Each output is where the mean of its inputs is; a convolution that keeps the grid keeps each place."""
    weight = layer_operands(function, args, kwargs)[1]
    if places is None or weight.ndim == 2:
        return _spread(places, -1, result)
    channel = _mean(places, 1)
    if channel.shape[2:] == result.shape[2:]:
        return channel.expand(result.shape)
    one = torch.ones(1, 1, *weight.shape[2:], dtype=places.dtype, device=places.device)
    geometry = {**layer_geometry(function, args, kwargs), "groups": 1}
    counted = function((channel > 0).to(places.dtype), one, None, **geometry)
    return (function(channel, one, None, **geometry) / counted.clamp(min=1)).expand(result.shape)


def _after_product(left: Tensor | None, right: Tensor | None, result: Tensor) -> Tensor | None:
    """What is weighed keeps its place, be it the right factor's rows or the left one's columns. Of scores, and where
    fewer keys than queries were weighed, rows are where the left factor's are, or columns where the right one's are.
    What was summed over places itself, as between channels, is nowhere."""
    by_row, by_column = _lie_apart(right, rows=True), _lie_apart(left, rows=False)
    if by_row and by_column:
        return None
    if by_row and right is not None and right.shape == result.shape:
        return right
    if by_column and left is not None and left.shape == result.shape:
        return left
    if right is None or _lie_apart(left, rows=True):
        return _spread(left, -1, result)
    return _spread(right, -2, result)


def _after_fold(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Where patches overlap, what lies on each other is added up."""
    places = args[0]
    total, counted = (torch.nn.functional.fold(x, *args[1:], **kwargs) for x in (places, (places > 0).to(places.dtype)))
    return total / counted.clamp(min=1)


def _lie_apart(places: Tensor | None, rows: bool) -> bool:
    """Whether a matrix' rows, or else its columns, lie in different places."""
    if places is None:
        return False
    mean, axis = (_mean(places, -1), -2) if rows else (_mean(places, -2), -1)
    return bool((mean != mean.narrow(axis, 0, 1)).any())


def _spread(places: Tensor | None, axis: int, result: Tensor) -> Tensor | None:
    """The mean along an axis, for all of the result's."""
    if places is None:
        return None
    return _stretched(_mean(places, axis), result)


def _mean(places: Tensor, axis: int) -> Tensor:
    """Of those that are somewhere."""
    return places.sum(axis, keepdim=True) / (places > 0).sum(axis, keepdim=True).clamp(min=1)


def _alike(candidates: Sequence[Tensor | None], result: Any) -> Tensor | None:
    """Of a function of each number alone: the places of the first argument, best of one of the result's shape."""
    if not isinstance(result, Tensor):
        return None
    known = [places for places in candidates if places is not None]
    same = next((places for places in known if places.shape == result.shape), None)
    return same if same is not None or not known else _stretched(known[0], result)


def _stretched(places: Tensor, result: Tensor) -> Tensor | None:
    """Repeated along the axes in which the argument was broadcast; None where it was not."""
    try:
        return places.expand(result.shape)
    except RuntimeError:
        return None

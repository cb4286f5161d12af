"""Modules whose calls of the framework lead through quantisation points, whoever wrote them.

While such a module's method runs, its matrix products, additions and concatenations are counted, and the trace
(`structure`) has said which of them have points. A call inside another module is that module's business.
"""

import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from psaq.models.operations import (
    KINDS,
    Function,
    Kind,
    attention,
    layer_operands,
    product_operands,
    sum_operands,
    with_factors,
    with_layer_operands,
)
from psaq.models.subclassed import subclassed
from psaq.quantization.model.layers import QuantLayer, ordinary, out_of_sight
from psaq.quantization.model.points import Point, Quantized
from psaq.quantization.quantizers.affine import AffineQuantizer, least_error_per_channel
from psaq.quantization.quantizers.groups import in_groups

Entry = tuple[str | None, ...] | None
"""The points of one call, by place; None where it has none. Of a layer's call that is not made by the layer itself: the
layer's path. See the functions below for what stands where."""

Entries = Mapping[str, Mapping[Kind, tuple[Entry, ...]]]
"""Method → kind → the calls that it makes of that kind, in order."""

ATTENTION = ("query", "key", "value", "scores", "probabilities", "bias_table", "biased_scores")
"""The points of a fused attention's call, in the order of its entry; the last two where it has a learnt bias."""

_BLOCKED = -50.0
"""A mask this low takes a key from a query's sight: softmax leaves nothing of it. No learnt bias comes near."""


class Watched(Quantized):
    """Mixin of a module that calls the framework itself."""

    psaq_watched: Entries

    def point_names(self) -> tuple[str, ...]:
        names = [name for method in self.psaq_watched.values() for name in points_of(method)]
        return tuple(dict.fromkeys(names))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _Watching(self, "forward"):
            return super().forward(*args, **kwargs)


class WatchedFeatures(Watched):
    """The same of a model whose features users call for without its head."""

    def forward_features(self, *args: Any, **kwargs: Any) -> Any:
        with _Watching(self, "forward_features"):
            return super().forward_features(*args, **kwargs)  # type: ignore[misc]

    def forward_intermediates(self, *args: Any, **kwargs: Any) -> Any:
        with _Watching(self, "forward_features"):
            return super().forward_intermediates(*args, **kwargs)  # type: ignore[misc]


class WatchedLayer(QuantLayer, Watched):
    """A layer that calls the framework in a way of its own."""

    psaq_watched: Entries = {"forward": {"layer": (("",),)}}  # noqa: RUF012 - the same for all, and never written to

    def point_names(self) -> tuple[str, ...]:
        return self.points


class WatchedResizable(WatchedFeatures):
    """The same of a model that takes another image size, or size of patches, on demand."""

    def set_input_size(self, *args: Any, **kwargs: Any) -> None:
        before = {name: module for name, module in self.named_modules() if isinstance(module, QuantLayer)}
        super().set_input_size(*args, **kwargs)  # type: ignore[misc]
        for name, layer in before.items():
            if self.get_submodule(name) is not layer:
                _take_over(layer, self.get_submodule(name))


def _take_over(old: QuantLayer, new: nn.Module) -> None:
    """Quantise the layer that a model has made in another's place as that was."""
    watch_layer(new)
    assert isinstance(new, QuantLayer)
    for name, child in old.named_children():
        new.add_module(name, child)
    if isinstance(old.weight_quantizer, AffineQuantizer):
        rows = new.rows(new.weight)
        new.weight_quantizer = _least_error(rows, old.weight_quantizer.bits, old.weight_quantizer.group)
        new.weight.data.copy_(new.from_rows(new.weight_quantizer(rows)))


def _least_error(rows: Tensor, bits: int, group: int | None) -> AffineQuantizer:
    if group is None:
        return least_error_per_channel(rows, bits)
    return in_groups(rows, group, lambda part, _: least_error_per_channel(part, bits))


def points_of(calls: Mapping[Kind, tuple[Entry, ...]]) -> list[str]:
    """The names of all points that a method's calls lead through."""
    pointed = [(kind, entry) for kind, entries in calls.items() for entry in entries if entry is not None]
    return [name for kind, entry in pointed if kind != "layer" or len(entry) > 1 for name in entry if name is not None]


def watch_layer(layer: nn.Module) -> None:
    """Give a linear or convolution layer its points, all of them off."""
    subclassed(layer, ordinary(layer) or WatchedLayer)
    _add_points(layer)


def watch(module: nn.Module, entries: Entries) -> None:
    """Let a module's calls lead through points, all of them off."""
    if not isinstance(module, Watched):
        subclassed(module, _mixin(module))
    module.psaq_watched = entries  # type: ignore[assignment]
    _add_points(module)


def _mixin(module: nn.Module) -> type[Watched]:
    if not hasattr(module, "forward_features"):
        return Watched
    return WatchedResizable if hasattr(module, "set_input_size") else WatchedFeatures


def watch_output(module: nn.Module) -> None:
    """Let what a module emits pass a point."""
    subclassed(module, WatchedOutput)
    _add_points(module)


class WatchedOutput(Quantized):
    """Mixin of a module whose output passes a point."""

    points = ("output",)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        emitted = super().forward(*args, **kwargs)
        with out_of_sight():
            return self.output(emitted)


def _add_points(module: nn.Module) -> None:
    assert isinstance(module, Quantized)
    for point in module.point_names():
        module.add_module(point, Point())


class _Watching(TorchFunctionMode):
    """Everything runs out of sight of the modes around it: what a module calls, its parents do not count."""

    def __init__(self, module: Watched, method: str):
        super().__init__()
        self.module = module
        self.entries = module.psaq_watched.get(method, {})
        self.counts = {"layer": 0, "product": 0, "sum": 0, "join": 0}

    def __torch_function__(
        self, function: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        kind = KINDS.get(function)
        if kind is not None and not _is_own_call():
            kind = None
        with out_of_sight():
            entry = None if kind is None else self._next(kind)
            if kind is None or entry is None:
                return function(*args, **kwargs)
            if kind == "layer":
                return _layer(self.module, entry, function, args, kwargs)
            if function is attention:
                return _attention(self.module, entry, *args, **kwargs)
            answer = {"product": _product, "sum": _sum, "join": _join}[kind]
            return answer(self.module, entry, function, args, kwargs)

    def _next(self, kind: Kind) -> Entry:
        entries, count = self.entries.get(kind, ()), self.counts[kind]
        self.counts[kind] = count + 1
        return entries[count] if count < len(entries) else None


def _is_own_call() -> bool:
    """Whether a watched method calls the framework, itself or by plain functions, and not a hook of a module within.

    A compiler sees no frames; there a hook's arithmetic counts.
    """
    if torch.compiler.is_compiling():
        return True
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code not in _METHODS:
        if frame.f_code is _CALL:
            return False
        frame = frame.f_back
    return True


_CALL = nn.Module._call_impl.__code__
_METHODS = frozenset(
    method.__code__
    for method in (Watched.forward, WatchedFeatures.forward_features, WatchedFeatures.forward_intermediates)
)


def _layer(module: Watched, entry: tuple[str | None, ...], function: Function, args: Any, kwargs: Any) -> Tensor:
    """(path of the layer whose weight it is) or (point of the input, point of a bare parameter)."""
    if len(entry) == 1:
        layer = module.get_submodule(entry[0] or "")
        assert isinstance(layer, QuantLayer)
        if layer is not module:
            _tell_hooks(layer, function, args, kwargs)
        return layer.quantised(function, args, kwargs)
    x, weight, _ = layer_operands(function, args, kwargs)
    x, weight = _through(module, entry[0], x), _through(module, entry[1], weight)
    return with_layer_operands(function, args, kwargs, x, weight)


def _tell_hooks(layer: QuantLayer, function: Function, args: Any, kwargs: Any) -> None:
    """Let hooks see what a layer takes as if it had been called."""
    for hook in layer._forward_pre_hooks.values():
        hook(layer, (layer_operands(function, args, kwargs)[0],))


def _product(module: Watched, entry: tuple[str | None, ...], function: Function, args: Any, kwargs: Any) -> Tensor:
    """(left factor, right factor, product)."""
    left, right = product_operands(function, args, kwargs)
    left, right = _through(module, entry[0], left), _through(module, entry[1], right)
    return _through(module, entry[2], with_factors(function, args, kwargs, left, right))


def _sum(module: Watched, entry: tuple[str | None, ...], function: Function, args: Any, kwargs: Any) -> Tensor:
    """(left addend, right addend, sum)."""
    if not module.is_live(*entry):
        return function(*args, **kwargs)
    left, right = sum_operands(args, kwargs)
    scale = {"alpha": kwargs["alpha"]} if "alpha" in kwargs else {}
    total = torch.add(_through(module, entry[0], left), _through(module, entry[1], right), **scale)
    total = _through(module, entry[2], total)
    return left.copy_(total) if function is Tensor.add_ else total


def _join(module: Watched, entry: tuple[str | None, ...], function: Function, args: Any, kwargs: Any) -> Tensor:
    """(what is joined)."""
    return _through(module, entry[0], function(*args, **kwargs))


def _attention(
    module: Watched,
    entry: tuple[str | None, ...],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`ATTENTION`. While none of its points is live, the framework's own fused attention runs."""
    if not module.is_live(*entry):
        return attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    at_query, at_key, at_value, at_scores, at_probabilities, at_bias, at_biased = entry
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    products = _through(module, at_query, query) @ _through(module, at_key, key).transpose(-2, -1)
    scores = _through(module, at_scores, products * factor)
    if is_causal:
        attn_mask = torch.ones_like(scores, dtype=torch.bool).tril()
    if attn_mask is not None:
        scores = _masked(module, at_bias, at_biased, scores, attn_mask)
    probabilities = torch.dropout(scores.softmax(-1), dropout_p, dropout_p > 0)
    return _through(module, at_probabilities, probabilities) @ _through(module, at_value, value)


def _masked(module: Watched, at_bias: str | None, at_biased: str | None, scores: Tensor, mask: Tensor) -> Tensor:
    """Scores with what is added to them; what a mask blocks stays blocked whatever is quantised."""
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, -torch.inf)
    if not module.is_live(at_bias, at_biased):
        return scores + mask
    blocked = mask < _BLOCKED
    bias = _through(module, at_bias, mask.masked_fill(blocked, 0))
    return _through(module, at_biased, scores + bias).masked_fill(blocked, -torch.inf)


def _through(module: Watched, point: str | None, x: Tensor) -> Tensor:
    return x if point is None else getattr(module, point)(x)

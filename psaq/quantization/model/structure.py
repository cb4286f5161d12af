"""What quantisation has to know of a model, read from one traced run of it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from torch import nn

from psaq.models.answers import head_layers
from psaq.models.operations import Kind, attention
from psaq.models.trace import IMAGE, NORMS, Call, Source, Trace
from psaq.quantization.model.layers import is_layer
from psaq.quantization.model.points import BARE_WEIGHT
from psaq.quantization.model.watching import ATTENTION, Entries, Entry

CASTS = frozenset({"to", "float", "half", "bfloat16", "type", "type_as", "cuda", "cpu"})
VIEWS = CASTS | frozenset(
    {"view", "reshape", "permute", "transpose", "flatten", "unflatten", "squeeze", "unsqueeze", "movedim", "moveaxis"}
    | {"swapaxes", "swapdims", "T", "mT", "t", "contiguous", "clone", "detach", "identity", "dropout", "roll", "pad"}
    | {"__getitem__", "unbind", "chunk", "split", "select", "narrow", "index_select", "gather", "take_along_dim"}
    | {"expand", "expand_as", "repeat", "tile", "view_as", "reshape_as"}
)
"""Calls that hand on values as they are, in another arrangement; padding adds some."""

MEANS = frozenset({"mean", "adaptive_avg_pool2d", "adaptive_avg_pool1d"})
ACTIVATIONS = frozenset(
    {"gelu", "silu", "hardswish", "relu", "relu6", "quick_gelu", "mish", "leaky_relu", "elu", "sigmoid"}
)


_MASKS = frozenset({"masked_fill", "where"})
_MOVES = frozenset({"permute", "transpose", "movedim"})


@dataclass(frozen=True)
class NormReaders:
    """A norm whose output goes, as it is, into layers and nowhere else, however often it runs in a pass.

    Attributes:
        norm: its name.
        layers: those that read it, and nothing else.
        padded: whether zeros are set beside its output, which stand for 0.0 whatever is folded into it.
        cast: whether its output is asked to be of some type on the way.
        averaged: whether what the layers read is a mean of it over positions.
        channels_first: whether the module emits (images, channels, height, width), though it normalises channels.
    """

    norm: str
    layers: tuple[str, ...]
    padded: bool
    cast: bool
    averaged: bool
    channels_first: bool = False


@dataclass(frozen=True)
class Activated:
    """An activation function's output that a layer reads as it is.

    Attributes:
        function: its name, such as "gelu"; "gelu tanh" is the approximation.
        module: which called it.
        before: the layer whose output it takes as it is, where neither that nor its own goes anywhere else, and none of
            the three has another call.
    """

    function: str
    module: str
    before: str | None


@dataclass(frozen=True)
class Structure:
    """Which calls and layers of a model have points, and what stands beside them; JSON types only.

    Attributes:
        layers: every linear and convolution layer on the image's way, in the order in which they run.
        watched: module → its calls' points.
        outputs: norms whose output has a point.
        ends: the layers that read the image or write the answer.
        heads: the layers that write the answer.
        feeds_activation: layers whose output goes into an activation function.
        norms: by name.
        activated: layer → the activation that it reads.
    """

    layers: tuple[str, ...] = ()
    watched: dict[str, Entries] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    feeds_activation: tuple[str, ...] = ()
    norms: tuple[NormReaders, ...] = ()
    activated: dict[str, Activated] = field(default_factory=dict)


def structure_of(model: nn.Module, trace: Trace) -> Structure:
    """Read ``model``'s structure from a trace of it."""
    return StructureReader(model, trace).structure()


def read_structure(numbers: Mapping[str, Any]) -> Structure:
    """A structure from what ``dataclasses.asdict`` and JSON have made of it."""
    names = {name: tuple(numbers[name]) for name in ("layers", "outputs", "ends", "heads", "feeds_activation")}
    watched: dict[str, Entries] = {
        module: {
            method: {kind: tuple(entry and tuple(entry) for entry in entries) for kind, entries in kinds.items()}
            for method, kinds in methods.items()
        }
        for module, methods in numbers["watched"].items()
    }
    norms = tuple(
        NormReaders(
            norm["norm"],
            tuple(norm["layers"]),
            norm["padded"],
            norm["cast"],
            norm["averaged"],
            norm.get("channels_first", False),
        )
        for norm in numbers["norms"]
    )
    activated = {layer: Activated(**found) for layer, found in numbers["activated"].items()}
    return Structure(**names, watched=watched, norms=norms, activated=activated)


class StructureReader:
    """Reads a structure off a trace; also which layer made which call."""

    def __init__(self, model: nn.Module, trace: Trace):
        self.model = model
        self.trace = trace
        self.modules = dict(model.named_modules())
        self.parameters = {name for name, _ in model.named_parameters()}
        self.heads = tuple(head_layers(trace))
        self.layer_of = {call.index: name for call in trace.of_kind("layer") if (name := self._layer(call))}

    def structure(self) -> Structure:
        layers = tuple(dict.fromkeys(self.layer_of.values()))
        watched = self._watched()
        norms = tuple(self._norms())
        return Structure(
            layers=layers,
            watched=watched,
            outputs=tuple(name for name in self._norm_outputs(norms) if name not in watched),
            ends=tuple(dict.fromkeys((*self._first(), *(self.heads if len(self.heads) <= _MOST_ENDS else ())))),
            heads=self.heads,
            feeds_activation=tuple(layer for layer in layers if self._feeds_activation(layer)),
            norms=tuple(norm for norm in norms if norm.layers and self._is_all_they_read(norm)),
            activated={name: found for name in layers if (found := self._activated(name))},
        )

    # Layers -----------------------------------------------------------------------------------------------------

    def _layer(self, call: Call) -> str | None:
        """The module whose weight a layer's call takes."""
        weight = call.sources[1]
        if isinstance(weight, str):
            owner, _, name = weight.rpartition(".")
            return owner if name == "weight" and is_layer(self.modules[owner]) else None
        return call.module if is_layer(self.modules[call.module]) else None

    def _calls_of(self, layer: str) -> list[Call]:
        return [self.trace.calls[index] for index, name in self.layer_of.items() if name == layer]

    # Points -----------------------------------------------------------------------------------------------------

    def _watched(self) -> dict[str, Entries]:
        """Modules that call the framework themselves, and the points of each call. One without points is watched,
        too, where it stands in another: its calls are not to be counted as the other's."""
        scopes: dict[str, dict[str, dict[Kind, dict[int, Entry]]]] = {}
        names = _Names(self.modules)
        for call in self.trace.calls:
            if call.kind is None or self.layer_of.get(call.index) == call.module:
                continue
            if is_layer(self.modules[call.module]):
                continue  # a layer's own preparations
            calls = scopes.setdefault(call.module, {}).setdefault(call.method, {}).setdefault(call.kind, {})
            if calls.get(call.ordinal) is None:
                calls[call.ordinal] = self._entry(call, names)
        return {
            module: {
                method: {kind: _in_order(calls) for kind, calls in kinds.items()} for method, kinds in methods.items()
            }
            for module, methods in scopes.items()
        }

    def _entry(self, call: Call, names: "_Names") -> Entry:
        if call.kind == "layer":
            return self._layer_entry(call, names)
        if call.kind == "product":
            return (
                self._attention_entry(call, names) if call.function is attention else self._product_entry(call, names)
            )
        return self._sum_entry(call, names) if call.kind == "sum" else self._join_entry(call, names)

    def _layer_entry(self, call: Call, names: "_Names") -> Entry:
        layer = self.layer_of.get(call.index)
        if layer is None:
            return names.take(call, ("left", BARE_WEIGHT))
        prefix = f"{call.module}." if call.module else ""
        return (layer.removeprefix(prefix),) if layer.startswith(prefix) else None

    def _attention_entry(self, call: Call, names: "_Names") -> Entry:
        learnt = len(call.sources) > 3 and self._is_learnt(call.sources[3])
        roles = ATTENTION if learnt else (*ATTENTION[:5], None, None)
        return names.take(call, roles)

    def _product_entry(self, call: Call, names: "_Names") -> Entry:
        if len(call.sources) != 2:
            return None  # an einsum of one, which only rearranges, or of several, whose products between are not seen
        left, right = call.sources
        if self.trace.is_static(left) and self.trace.is_static(right):
            return None
        if self._is_learnt(right):
            return names.take(call, ("left", BARE_WEIGHT, None))
        if self._is_learnt(left):
            return names.take(call, (BARE_WEIGHT, "right", None))
        if self._is_softmax(left):
            return names.take(call, ("probabilities", "value", None))
        if self._is_softmax(right):
            return names.take(call, ("value", "probabilities", None))
        if self._goes_into_softmax(call):
            return names.take(call, ("query", "key", "scores"))
        return names.take(call, ("left", "right", None))

    def _sum_entry(self, call: Call, names: "_Names") -> Entry:
        if len(call.sources) != 2 or self.trace.is_static(call.index) or _is_of_places(call):
            return None
        static = [self.trace.is_static(source) for source in call.sources]
        if not any(static):
            return (
                None
                if self._joins_heads(call) or self._is_masked(call)
                else (None, None, names.numbered(call, "residual"))
            )
        learnt = call.sources[static.index(True)]
        if not self._is_learnt(learnt) or self._extent(learnt) < 2:
            return None  # a mask, or a bias of its own
        dynamic = call.sources[static.index(False)]
        scores = self.trace.came_from(
            dynamic, lambda c: c.kind == "product", lambda c: c.name in VIEWS | {"mul", "div"}
        )
        roles = ("bias_table", "biased_scores") if scores else ("position_embedding", "embedded")
        at_static, at_sum = names.take(call, roles)
        return (at_static, None, at_sum) if static[0] else (None, at_static, at_sum)

    def _joins_heads(self, call: Call) -> bool:
        """Whether the answers of two heads are added: they have passed a point each."""
        behind = [self._layer_behind(source) for source in call.sources]
        return all(layer in self.heads for layer in behind)

    def _is_masked(self, call: Call) -> bool:
        """Whether scores lose what a mask that the image decides takes from them: −∞ has no level."""
        masks = (
            self.trace.came_from(source, lambda c: c.name in _MASKS, lambda c: c.name in VIEWS)
            for source in call.sources
        )
        return any(masks) and self._goes_into_softmax(call)

    def _layer_behind(self, source: Source) -> str | None:
        """The layer whose output a tensor is, however rearranged."""
        found = self.trace.came_from(source, lambda c: c.kind == "layer", lambda c: c.name in VIEWS)
        return None if found is None else self.layer_of.get(found.index)

    def _join_entry(self, call: Call, names: "_Names") -> Entry:
        learnt = any(self._is_learnt(source) for source in call.sources)
        return names.take(call, ("tokens",)) if learnt and not self.trace.is_static(call.index) else None

    def _is_learnt(self, source: Source) -> bool:
        return self.trace.is_static(source) and bool(self.trace.parameters_behind(source) & self.parameters)

    def _extent(self, source: Source) -> int:
        """In how many directions a tensor extends."""
        shape = self.trace.calls[source].shape if isinstance(source, int) else self.trace.shapes[source or ""]
        return sum(side > 1 for side in shape)

    def _is_softmax(self, source: Source) -> bool:
        return self.trace.came_from(source, lambda c: c.name == "softmax", lambda c: c.name in VIEWS) is not None

    def _goes_into_softmax(self, call: Call) -> bool:
        """Whether the next thing that happens to a product is a softmax; on the way it is scaled, biased, masked."""
        seen, waiting = set(), [call]
        while waiting:
            for reader in self.trace.readers(waiting.pop().index):
                if reader.name == "softmax":
                    return True
                if reader.index not in seen and reader.kind not in ("layer", "product"):
                    seen.add(reader.index)
                    if reader.name not in NORMS and len(seen) < 100:
                        waiting.append(reader)
        return False

    # Norms ------------------------------------------------------------------------------------------------------

    def _norms(self) -> Iterator[NormReaders]:
        """Every norm that is a module; one that anything but layers reads, in any of its calls, has no layers here."""
        calls: dict[str, list[Call]] = {}
        for call in self.trace.calls:
            if (owner := self._norm(call)) is not None:
                calls.setdefault(owner, []).append(call)
        return (self._read(norm, own) for norm, own in calls.items())

    def _read(self, norm: str, calls: list[Call]) -> NormReaders:
        found = [self.taken_as_it_is(call, VIEWS | MEANS) for call in calls]
        last = [reader for readers, _ in found for reader in readers]
        between = [view for _, views in found for view in views]
        layers = [self.layer_of.get(reader.index) for reader in last]
        given = {call.index for call in (*calls, *between)} & set(self.trace.outputs)
        exclusive = not given and all(
            layer is not None and isinstance(reader.sources[0], int) for layer, reader in zip(layers, last, strict=True)
        )
        return NormReaders(
            norm,
            tuple(dict.fromkeys(layer for layer in layers if layer)) if exclusive else (),
            padded=any(map(self._pads, between)),
            cast=any(view.name in CASTS for view in between),
            averaged=any(view.name in MEANS for view in between),
            channels_first=any(view.module == norm and view.name in _MOVES for view in between),
        )

    def _is_all_they_read(self, norm: NormReaders) -> bool:
        """Whether the layers that read a norm read nothing else in any of their calls."""
        calls = [call for layer in norm.layers for call in self._calls_of(layer)]
        return all(self._norm_behind(call.sources[0]) == norm.norm for call in calls)

    def _norm_behind(self, source: Source) -> str | None:
        """The norm whose output a tensor is, however rearranged and averaged."""
        found = self.trace.came_from(source, lambda c: self._norm(c) is not None, lambda c: c.name in VIEWS | MEANS)
        return None if found is None else self._norm(found)

    def _norm(self, call: Call) -> str | None:
        """The module of a norm over channels that makes the call itself, with a scale of its own or none."""
        if call.name not in NORMS or call.sources[1:2] not in ((), (None,), (f"{call.module}.weight",)):
            return None
        own = self.modules[call.module]
        return None if any(True for _ in own.children()) else call.module

    def _norm_outputs(self, norms: Iterable[NormReaders]) -> list[str]:
        return [norm.norm for norm in norms if norm.averaged or not norm.layers]

    def _pads(self, view: Call) -> bool:
        source = view.sources[0] if view.sources else None
        return view.name == "pad" and isinstance(source, int) and self.trace.calls[source].shape != view.shape

    def taken_as_it_is(self, call: Call, through: frozenset[str] = VIEWS) -> tuple[list[Call], list[Call]]:
        """Who reads a call's result, however it is rearranged on the way; and the rearrangements."""
        last, between, waiting = [], [], [call]
        while waiting:
            for reader in self.trace.readers(waiting.pop().index):
                if reader.name in through and reader not in between:
                    between.append(reader)
                    waiting.append(reader)
                elif reader.name not in through:
                    last.append(reader)
        return last, between

    # Activations ------------------------------------------------------------------------------------------------

    def _feeds_activation(self, layer: str) -> bool:
        return any(
            self._activation(reader) for call in self._calls_of(layer) for reader in self.taken_as_it_is(call)[0]
        )

    def _activated(self, layer: str) -> Activated | None:
        found = self.trace.came_from(
            self._calls_of(layer)[0].sources[0], lambda c: self._activation(c) is not None, lambda c: c.name in VIEWS
        )
        if found is None:
            return None
        before = self._layer_behind(found.sources[0])
        alone = before is not None and self._is_a_chain(before, found.module, layer)
        return Activated(self._activation(found) or "", found.module, before if alone else None)

    def _is_a_chain(self, before: str, module: str, layer: str) -> bool:
        """Whether every call of a layer goes into one of a module and that into one of the next layer, each as it is;
        and the three have no other calls."""
        own = [call for call in self.trace.calls if call.module == module and call.name not in VIEWS]
        links = [self._calls_of(before), own, self._calls_of(layer)]
        return len(set(map(len, links))) == 1 and all(
            self._one_reader(call) in following for calls, following in pairwise(links) for call in calls
        )

    def _one_reader(self, call: Call) -> Call | None:
        """The call that takes a result as it is, not padded nor cast on the way; None where anything else takes it,
        too."""
        last, between = self.taken_as_it_is(call)
        given = {call.index, *(view.index for view in between)} & set(self.trace.outputs)
        changed = any(self._pads(view) or view.name in CASTS for view in between)
        return last[0] if len(last) == 1 and not given and not changed else None

    def _activation(self, call: Call) -> str | None:
        """The name of the activation function that a call computes, x · sigmoid(1.702 x) and gates among them."""
        if call.name in ACTIVATIONS:
            return f"{call.name} tanh" if call.settings.get("approximate") == "tanh" else call.name
        if call.name != "mul" or len(call.sources) != 2 or any(map(self.trace.is_static, call.sources)):
            return None
        factors = [self.trace.calls[source] for source in call.sources if isinstance(source, int) and source >= 0]
        if any(factor.name == "sigmoid" for factor in factors):
            return "quick_gelu"
        return next((f"gated {factor.name}" for factor in factors if factor.name in ("silu", "gelu")), None)

    # Ends -------------------------------------------------------------------------------------------------------

    def _first(self) -> list[str]:
        """The layers that read the image, however it is prepared."""
        inputs = {index: self.trace.calls[index].sources[0] for index in self.layer_of}
        return [
            name for index, name in self.layer_of.items() if self.trace.reached(inputs[index], _is_layer) == [IMAGE]
        ]


def _is_layer(call: Call) -> bool:
    return call.kind == "layer"


def _is_of_places(call: Call) -> bool:
    """Whether a sum is one of corners, centres or sizes of boxes, as detectors reckon with: no features are so few, and
    8 bits would move the boxes."""
    return len(call.shape) < 2 or (len(call.shape) <= 3 and call.shape[-1] <= _MOST_COORDINATES)


_MOST_COORDINATES = 4
_MOST_ENDS = 8
"""More layers than that are no heads: they write to a residual stream that is the answer."""


class _Names:
    """Names for points that no child of a module has yet."""

    def __init__(self, modules: dict[str, nn.Module]):
        self.modules = modules
        self.taken: dict[str, set[str]] = {}

    def take(self, call: Call, roles: tuple[str | None, ...]) -> tuple[str | None, ...]:
        """One name for each role, with the number that the call has among its like."""
        number = 1
        while any(self._is_taken(call.module, _name(role, number)) for role in roles if role):
            number += 1
        names = tuple(role and self._free(call.module, _name(role, number)) for role in roles)
        self._taken(call.module).update(name for name in names if name)
        return names

    def numbered(self, call: Call, role: str) -> str:
        """A name that always bears its number."""
        number = 1
        while f"{role}{number}" in self._taken(call.module):
            number += 1
        self._taken(call.module).add(f"{role}{number}")
        return self._free(call.module, f"{role}{number}")

    def _free(self, module: str, name: str) -> str:
        return f"{name}_point" if hasattr(self.modules[module], name) else name

    def _is_taken(self, module: str, name: str) -> bool:
        return bool({name, f"{name}_point"} & self._taken(module))

    def _taken(self, module: str) -> set[str]:
        return self.taken.setdefault(module, set())


def _name(role: str, number: int) -> str:
    return role if number == 1 else f"{role}{number}"


def _in_order(calls: dict[int, Entry]) -> tuple[Entry, ...]:
    return tuple(calls.get(ordinal) for ordinal in range(max(calls) + 1))

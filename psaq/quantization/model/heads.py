"""Attention whose factors are a layer's outputs as they are, found by marking every channel of every layer.

In one run each layer emits, in place of its output, the numbers of its channels. Where these arrive at a query, a key
or a value untouched, one number per head and channel, the layer's rows are known that make it; where value's arrive at
a layer's input, so are the columns that read it. Norms, rotary positions or anything else on the way would change them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from psaq.models.calling import run
from psaq.models.copying import copied
from psaq.models.operations import attention
from psaq.models.trace import Call, Trace
from psaq.quantization.model.points import all_points, layer_of, role
from psaq.quantization.model.structure import StructureReader

Channels = Int[Tensor, "heads channels"]

_TOLERANCE = 0.2
"""Channel numbers are whole; averaging equal ones in float32 leaves an error far below this."""


@dataclass(frozen=True)
class Projection:
    """Which outputs of a layer are a head's channels, or which inputs of one read them."""

    layer: str
    channels: Channels


@dataclass(frozen=True)
class PlainAttention:
    """Attention where nothing stands between the projections and the products."""

    query: Projection
    key: Projection
    value: Projection
    output: Projection


@torch.no_grad()
def plain_attention(qmodel: nn.Module, trace: Trace, images: Tensor) -> list[PlainAttention]:
    """All of it, in the order of the model's modules."""
    reader = StructureReader(qmodel, trace)
    run_marked = _MarkedRun(qmodel, trace, reader)
    marks = run_marked(images)
    found = [run_marked.attention_of(points, marks) for points in _attentions(qmodel)]
    return [attention for attention in found if attention is not None]


def _attentions(qmodel: nn.Module) -> list[dict[str, str]]:
    """Role → point, for each attention that has a query, a key, probabilities and a value."""
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for point in all_points(qmodel):
        name = point.rpartition(".")[2].removesuffix("_point")
        number = name.removeprefix(role(point))
        groups.setdefault((layer_of(point), number), {})[role(point)] = point
    return [group for group in groups.values() if {"query", "key", "value", "probabilities"} <= group.keys()]


def product_at(qmodel: nn.Module, trace: Trace, point: str) -> Call:
    """The product that leads through a point."""
    module: Any = qmodel.get_submodule(layer_of(point))
    name = point.rpartition(".")[2]
    made = {
        (method, ordinal)
        for method, kinds in module.psaq_watched.items()
        for ordinal, entry in enumerate(kinds.get("product", ()))
        if entry is not None and name in entry
    }
    own = (call for call in trace.of_kind("product") if call.module == layer_of(point))
    return next(call for call in own if (call.method, call.ordinal) in made)


def factor_before(qmodel: nn.Module, trace: Trace, point: str) -> float:
    """The constant that a query, key or value is multiplied with before its point: queries where attention is not
    fused."""
    call = product_at(qmodel, trace, point)
    places = {"query": 0, "key": 1, "value": 2 if call.function is attention else 1}
    source, factor = call.sources[places[role(point)]], 1.0
    while isinstance(source, int) and source >= 0:
        step = trace.calls[source]
        if step.kind == "layer" or len(step.sources) != 1:
            break
        by = step.settings.get("by", 1.0)
        factor *= by if step.name == "mul" else 1 / by
        source = step.sources[0]
    return factor


class _MarkedRun:
    def __init__(self, qmodel: nn.Module, trace: Trace, reader: StructureReader):
        self.model = copied(qmodel).float()
        self.trace = trace
        self.reader = reader
        self.first: dict[str, int] = {}
        """Layer → the number of its first channel."""
        total = 1  # 0 is what padding brings
        for name in dict.fromkeys(reader.layer_of.values()):
            self.first[name] = total
            total += self._outputs(name)
        self.owner = {self.first[name] + channel: name for name in self.first for channel in range(self._outputs(name))}

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Point → what arrived there."""
        seen: dict[str, Tensor] = {}
        for name in self.first:
            self.model.get_submodule(name).register_forward_hook(self._marking(self.first[name]))
        for point in all_points(self.model):
            if role(point) in ("query", "key", "value", "input"):
                self.model.set_submodule(point, _Catch(point, seen))
        run(self.model, images.float())
        return seen

    def attention_of(self, points: dict[str, str], marks: dict[str, Tensor]) -> PlainAttention | None:
        query, key, value = (self._projection(points[part], marks) for part in ("query", "key", "value"))
        if query is None or key is None or value is None or not self._are_whole(query, key, value):
            return None
        output = self._reader(value, points["value"], marks)
        return None if output is None else PlainAttention(query, key, value, output)

    def _outputs(self, layer: str) -> int:
        module: Any = self.model.get_submodule(layer)
        return len(module.rows(module.weight))

    def _marking(self, first: int) -> Callable[..., Tensor]:
        def mark(module: Any, _: object, output: Tensor) -> Tensor:
            axis = -1 if isinstance(module, nn.Linear) or module.weight.ndim == 2 else 1
            numbers = torch.arange(first, first + output.shape[axis], dtype=output.dtype, device=output.device)
            shape = [1] * output.ndim
            shape[axis] = -1
            return numbers.view(shape).expand_as(output).contiguous()

        return mark

    def _projection(self, point: str, marks: dict[str, Tensor]) -> Projection | None:
        arrived = marks.get(point)
        if arrived is None or arrived.ndim < 3:
            return None
        heads = _one_window(arrived[0]) if arrived.ndim > 3 else arrived[:1]
        if heads is None:
            return None
        by_token = heads if _is_constant(heads, -2) else heads.mT
        channels = self._whole_numbers(by_token[..., 0, :] / factor_before(self.model, self.trace, point))
        if channels is None or not _is_constant(by_token, -2) or not bool((arrived == arrived[:1]).all()):
            return None
        names = {self.owner.get(int(number)) for number in channels.flatten()}
        if len(names) != 1 or None in names:
            return None
        layer = str(names.pop())
        if not isinstance(self.model.get_submodule(layer), nn.Linear):
            return None
        return Projection(layer, channels - self.first[layer])

    def _whole_numbers(self, values: Tensor) -> Channels | None:
        rounded = values.round()
        return rounded.long() if bool(((values - rounded).abs() < _TOLERANCE).all()) else None

    def _are_whole(self, *projections: Projection) -> bool:
        """Whether the layers' outputs go into this attention, each once, and nowhere else."""
        used: dict[str, list[int]] = {}
        for part in projections:
            used.setdefault(part.layer, []).extend(part.channels.flatten().tolist())
        shapes = {part.channels.shape for part in projections}
        whole = all(sorted(rows) == list(range(self._outputs(layer))) for layer, rows in used.items())
        return whole and len(shapes) == 1

    def _reader(self, value: Projection, point: str, marks: dict[str, Tensor]) -> Projection | None:
        """The one linear layer that reads what attention makes of ``value``."""
        calls, _ = self.reader.taken_as_it_is(product_at(self.model, self.trace, point))
        if len(calls) != 1 or (layer := self.reader.layer_of.get(calls[0].index)) is None:
            return None
        arrived = marks.get(f"{layer}.input")
        if arrived is None or not isinstance(self.model.get_submodule(layer), nn.Linear):
            return None
        row = self._whole_numbers(arrived.flatten(0, -2)[0])
        wanted = value.channels + self.first[value.layer]
        if row is None or sorted(row.tolist()) != sorted(wanted.flatten().tolist()):
            return None
        place = {number: column for column, number in enumerate(row.tolist())}
        columns = wanted.new_tensor([place[number] for number in wanted.flatten().tolist()])
        return Projection(layer, columns.view_as(wanted))


class _Catch(nn.Module):
    """Keeps what passes first. No `Point`: attention leads through it."""

    def __init__(self, name: str, seen: dict[str, Tensor]):
        super().__init__()
        self.name, self.seen = name, seen

    def forward(self, x: Tensor) -> Tensor:
        self.seen.setdefault(self.name, x)
        return x


def _one_window(values: Float[Tensor, "*windows tokens channels"]) -> Float[Tensor, "heads tokens channels"] | None:
    """Of attention that has an axis for windows beside that for heads: what every window holds alike."""
    while values.ndim > 3:
        axis = next((axis for axis in range(values.ndim - 2) if _is_constant(values, axis)), None)
        if axis is None:
            return None
        values = values.select(axis, 0)
    return values


def _is_constant(values: Tensor, axis: int) -> bool:
    return bool((values == values.narrow(axis, 0, 1)).all())

"""Residual streams: what writes to them, and what reads them through a norm."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from psaq.models.trace import IMAGE, NORMS, Call, Source, Trace
from psaq.quantization.model.structure import MEANS, VIEWS, Structure, StructureReader

_CARRYING = VIEWS | MEANS | {"interpolate"}
"""Calls that treat every channel of a stream alike."""


@dataclass(frozen=True)
class Writer:
    """A layer whose output, times the scales behind it, is added to the stream; both by name."""

    layer: str
    scale: str | None = None


@dataclass(frozen=True)
class Reader:
    """A norm of the stream, and all the layers that its output goes into; by name."""

    norm: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Stream:
    """All that touches features to which one layer after the other adds.

    Attributes:
        tokens: parameters that are added to it or set beside it, (…, channels).
    """

    channels: int
    tokens: tuple[str, ...]
    writers: tuple[Writer, ...]
    readers: tuple[Reader, ...]


def streams(model: nn.Module, trace: Trace, structure: Structure) -> list[Stream]:
    """Those that nothing touches but writers, tokens and readers, in the order in which they begin."""
    explored: set[int] = set()
    found = []
    for call in trace.of_kind("sum"):
        if call.index in explored or trace.is_static(call.index):
            continue
        walk = _Exploration(model, trace, structure)
        stream = walk.from_call(call)
        explored |= walk.seen
        if stream is not None:
            found.append((min(walk.seen), stream))
    return [stream for _, stream in sorted(found, key=lambda pair: pair[0])]


class _UnknownError(Exception):
    """Something touches the stream that is neither writer nor token nor reader."""


class _Exploration:
    """Everything that a stream's features reach and come from."""

    def __init__(self, model: nn.Module, trace: Trace, structure: Structure):
        self.model = model
        self.trace = trace
        self.layers = StructureReader(model, trace).layer_of
        self.norms = {norm.norm: norm for norm in structure.norms}
        self.seen: set[int] = set()
        self.tokens: dict[str, None] = {}
        self.writers: dict[Writer, None] = {}
        self.readers: dict[Reader, None] = {}
        self.waiting: list[Call] = []

    def from_call(self, call: Call) -> Stream | None:
        self._join(call)
        known = True
        while self.waiting:
            step = self.waiting.pop()
            try:
                self._backward(step)
                self._forward(step)
            except _UnknownError:  # explore on, so that no part is taken for a stream of its own
                known = False
        return self._stream() if known else None

    def _stream(self) -> Stream | None:
        widths = {self._width(writer.layer) for writer in self.writers}
        if len(widths) != 1 or not self.readers:
            return None
        stream = Stream(widths.pop(), tuple(self.tokens), tuple(self.writers), tuple(self.readers))
        return stream if self._fits(stream) else None

    def _fits(self, stream: Stream) -> bool:
        tokens = all(self.trace.shapes[token][-1] == stream.channels for token in stream.tokens)
        layers = [self.model.get_submodule(layer) for reader in stream.readers for layer in reader.layers]
        wide = all(isinstance(layer, nn.Linear) and layer.in_features % stream.channels == 0 for layer in layers)
        names = [layer for reader in stream.readers for layer in reader.layers]
        return tokens and wide and len(set(names)) == len(names)

    def _width(self, layer: str) -> int:
        module = self.model.get_submodule(layer)
        if isinstance(module, nn.Linear):
            return module.out_features
        assert isinstance(module, nn.Conv2d)
        return module.out_channels

    def _join(self, call: Call) -> None:
        if call.index not in self.seen:
            self.seen.add(call.index)
            self.waiting.append(call)

    # What the features came from ---------------------------------------------------------------------------------

    def _backward(self, call: Call) -> None:
        if call.index in self.layers:
            self._write(Writer(self.layers[call.index]))
        elif call.name == "mul":
            self._write(self._scaled(call))
        elif call.kind in ("sum", "join") or call.name in _CARRYING:
            for source in call.sources:
                self._came_from(source)
        else:
            raise _UnknownError

    def _came_from(self, source: Source) -> None:
        if source == IMAGE:
            raise _UnknownError
        if self.trace.is_static(source):
            self._token(source)
        elif isinstance(source, int):
            self._join(self.trace.calls[source])

    def _token(self, source: Source) -> None:
        if source is None:
            return
        behind = self.trace.parameters_behind(source)
        if len(behind) != 1 or not all(call.name in _CARRYING for call in self._calls_behind(source)):
            raise _UnknownError
        self.tokens[behind.pop()] = None

    def _calls_behind(self, source: Source) -> Iterator[Call]:
        if isinstance(source, int):
            yield self.trace.calls[source]
            for taken in self.trace.calls[source].sources:
                yield from self._calls_behind(taken)

    def _write(self, writer: Writer) -> None:
        module = self.model.get_submodule(writer.layer)
        plain = isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
        if not plain or list(self.layers.values()).count(writer.layer) > 1:
            raise _UnknownError
        self.writers[writer] = None

    def _scaled(self, call: Call) -> Writer:
        """A layer's output times a parameter, one number a channel."""
        scales = [source for source in call.sources if isinstance(source, str)]
        layer = next((source for source in call.sources if isinstance(source, int) and source != IMAGE), None)
        behind = self.trace.came_from(layer, lambda c: c.kind == "layer", lambda c: c.name in VIEWS)
        if len(scales) != 1 or behind is None or behind.index not in self.layers:
            raise _UnknownError
        writer = Writer(self.layers[behind.index], scales[0])
        if self.trace.shapes[scales[0]] != (self._width(writer.layer),) or len(self.trace.readers(behind.index)) != 1:
            raise _UnknownError
        return writer

    # What takes them ---------------------------------------------------------------------------------------------

    def _forward(self, call: Call) -> None:
        if call.index in self.trace.outputs:
            raise _UnknownError
        for reader in self.trace.readers(call.index):
            if reader.kind in ("sum", "join") or reader.name in _CARRYING:
                self._join(reader)
            elif reader.module in self.norms and reader.name in NORMS:
                self._read(reader.module)
            else:
                raise _UnknownError

    def _read(self, name: str) -> None:
        norm, module = self.norms[name], self.model.get_submodule(name)
        if norm.padded and getattr(module, "bias", None) is not None:
            raise _UnknownError  # zeros stand behind the norm: nothing may be added to what they are multiplied with
        self.readers[Reader(name, norm.layers)] = None

"""What one run of a model shows: every call of the framework, which module made it, and what its tensors came from.

All that psaq knows of a model's structure is read from this: no part of it looks at a class.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from psaq.errors import PsaqError
from psaq.models.borrowing import borrowed, calling_instead, evaluating, only_here
from psaq.models.calling import run, takes, tensors_of
from psaq.models.operations import (
    KINDS,
    Function,
    Kind,
    attention,
    attention_operands,
    layer_geometry,
    layer_operands,
    name_of,
    product_operands,
    sum_operands,
    tensors_in,
)

IMAGE = -1
"""The source of the images themselves."""

Source = int | str | None
"""What a tensor came from: a call's index, `IMAGE`, a parameter's or buffer's name, or nothing that was seen."""

_CALL = nn.Module._call_impl.__code__

NORMS = frozenset({"layer_norm", "rms_norm"})

METHODS = ("forward", "forward_features")
"""Where a module's calls are counted anew: users call the second without the first."""


@dataclass(frozen=True)
class Call:
    """One call of the framework.

    Attributes:
        name: the function's, such as "layer_norm".
        module: the innermost module whose method made it.
        method: one of `METHODS`.
        ordinal: how many calls of its kind the method made before.
        sources: of its tensors; of layers input, weight, bias; of products their factors; of attention also the mask.
        shape: of its first result.
        settings: what else it was told: a convolution's geometry, what a padding is filled with.
    """

    index: int
    function: Function
    name: str
    kind: Kind | None
    module: str
    method: str
    ordinal: int
    sources: tuple[Source, ...]
    shape: tuple[int, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Trace:
    """The calls of one run, in order."""

    calls: list[Call] = field(default_factory=list)
    outputs: list[Source] = field(default_factory=list)
    """What the model's answer came from."""
    images: int = 1
    image_size: tuple[int, int] = (0, 0)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Of parameters and buffers."""
    computed_weights: dict[int, Tensor] = field(default_factory=dict)
    """Call of a layer → its weight, where that is no parameter but was computed from one."""

    def __post_init__(self) -> None:
        self._readers: dict[Source, list[Call]] | None = None
        self._static: list[bool] = []

    def readers(self, source: Source) -> list[Call]:
        """The calls that took what came from ``source``."""
        if self._readers is None:
            self._readers = {}
            for call in self.calls:
                for taken in dict.fromkeys(call.sources):
                    self._readers.setdefault(taken, []).append(call)
        return self._readers.get(source, [])

    def of_kind(self, kind: Kind) -> Iterator[Call]:
        """The calls of one kind."""
        return (call for call in self.calls if call.kind == kind)

    def is_static(self, source: Source) -> bool:
        """Whether it depends on parameters alone, not on the image."""
        if not isinstance(source, int):
            return True
        for call in self.calls[len(self._static) :]:
            self._static.append(
                all(taken != IMAGE and (not isinstance(taken, int) or self._static[taken]) for taken in call.sources)
            )
        return source != IMAGE and self._static[source]

    def parameters_behind(self, source: Source) -> set[str]:
        """The parameters and buffers that something static was computed from."""
        if isinstance(source, str):
            return {source}
        if source is None or source == IMAGE:
            return set()
        return {name for taken in self.calls[source].sources for name in self.parameters_behind(taken)}

    def reached(self, source: Source, stop: Callable[[Call], bool]) -> list[int]:
        """Where a walk back from ``source`` ends: calls at which it is to stop, or `IMAGE`."""
        ends, seen, waiting = [], set(), [source]
        while waiting:
            taken = waiting.pop()
            if not isinstance(taken, int) or taken in seen or self.is_static(taken):
                continue
            seen.add(taken)
            if taken == IMAGE or stop(self.calls[taken]):
                ends.append(taken)
            else:
                waiting.extend(self.calls[taken].sources)
        return ends

    def came_from(self, source: Source, wanted: Callable[[Call], bool], through: Callable[[Call], bool]) -> Call | None:
        """The nearest call behind ``source`` that is ``wanted``, where all between are ``through``."""
        while isinstance(source, int) and source != IMAGE:
            call = self.calls[source]
            if wanted(call):
                return call
            if not through(call):
                return None
            source = next((taken for taken in call.sources if not self.is_static(taken)), None)
        return None


@torch.no_grad()
def trace(model: nn.Module, images: Tensor) -> Trace:
    """Run ``model`` in evaluation mode on a few images and write down its calls.

    Args:
        images: one is enough.

    Raises:
        PsaqError: the model does not take such images.
    """
    with borrowed(model):
        return _traced(model, images)


def _traced(model: nn.Module, images: Tensor) -> Trace:
    found = Trace(images=len(images), image_size=(images.shape[-2], images.shape[-1]))
    recorder = _Recorder(found, model, images)
    try:
        with evaluating(model), recorder.watching(model), recorder:
            output = run(model, images)
    except Exception as error:  # whatever a model raises where it does not take what it is given
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise PsaqError(
            f"{type(model).__name__}: does not take images of shape {tuple(images.shape)}, normalised and as a "
            f"{takes(model)} ({reason}). Give images of its size, or say how it is called: psaq.describe(model, …)"
        ) from error
    found.outputs = [recorder.source(tensor) for tensor in tensors_of(output)]
    return found


class _Recorder(TorchFunctionMode):
    def __init__(self, found: Trace, model: nn.Module, images: Tensor):
        super().__init__()
        self.found = found
        self._alive: list[Tensor] = []  # a tensor that is gone would lend its identity to another
        self._sources: dict[int, Source] = {}
        self._hooks = {
            hook.__code__
            for module in model.modules()
            for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
            if hasattr(hook, "__code__")
        }
        self._scopes: list[tuple[str, str, Counter[Kind]]] = [("", "forward", Counter())]
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            self._sources[id(tensor)] = name
            found.shapes[name] = tuple(tensor.shape)
        self._remember(images, IMAGE)

    def source(self, tensor: Any) -> Source:
        return self._sources.get(id(tensor))

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Know in which module's method a call is made."""
        with ExitStack() as stack:
            for name, module in model.named_modules():
                stack.enter_context(self._announced(name, module))
            yield

    @contextmanager
    def _announced(self, name: str, module: nn.Module) -> Iterator[None]:
        enter = module.register_forward_pre_hook(only_here(lambda *_: self._enter(name, "forward")), prepend=True)
        leave = module.register_forward_hook(only_here(lambda *_: self._leave()), always_call=True)
        inner = getattr(module, "forward_features", None)
        scoped = (
            calling_instead(module, "forward_features", self._scoped(name, inner)) if callable(inner) else nullcontext()
        )
        try:
            with scoped:
                yield
        finally:
            enter.remove()
            leave.remove()

    def _scoped(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        enter, leave = only_here(self._enter), only_here(self._leave)

        def scoped(*args: Any, **kwargs: Any) -> Any:
            enter(name, "forward_features")
            try:
                return method(*args, **kwargs)
            finally:
                leave()

        return scoped

    def _in_a_hook(self) -> bool:
        """Whether a hook of the user's makes the call: its arithmetic is not the model's."""
        frame: FrameType | None = sys._getframe(3)
        while frame is not None and frame.f_code is not _CALL:
            if frame.f_code in self._hooks:
                return True
            frame = frame.f_back
        return False

    def _enter(self, name: str, method: str) -> None:
        self._scopes.append((name, method, Counter()))

    def _leave(self) -> None:
        self._scopes.pop()

    def _remember(self, tensor: Tensor, source: Source) -> None:
        self._alive.append(tensor)
        self._sources[id(tensor)] = source

    def __torch_function__(
        self, function: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        sources = tuple(map(self.source, _operands(function, args, kwargs)))
        with torch._C.DisableTorchFunction():
            result = function(*args, **kwargs)
        tensors = [args[0]] if result is None and _writes(function) else list(tensors_in(result))
        if tensors:
            self._write_down(function, args, kwargs, sources, tensors)
        return result

    def _write_down(
        self,
        function: Function,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        sources: tuple[Source, ...],
        tensors: list[Tensor],
    ) -> None:
        module, method, counts = self._scopes[-1]
        kind = None if self._in_a_hook() else KINDS.get(function)
        index = len(self.found.calls)
        if not any(source is not None for source in sources) and kind is None:
            return  # made of nothing that was seen: a constant
        settings = _settings(function, kind, args, kwargs)
        ordinal = counts[kind] if kind else 0
        shape = tuple(tensors[0].shape)
        self.found.calls.append(
            Call(index, function, name_of(function), kind, module, method, ordinal, sources, shape, settings)
        )
        if kind:
            counts[kind] += 1
        if kind == "layer" and isinstance(sources[1], int):
            self.found.computed_weights[index] = layer_operands(function, args, kwargs)[1].detach().clone()
        for tensor in tensors:
            self._remember(tensor, index)


def _operands(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    kind = KINDS.get(function)
    if kind == "layer":
        return layer_operands(function, args, kwargs)
    if function is attention:
        return attention_operands(args, kwargs)
    if kind == "product" and None not in (factors := product_operands(function, args, kwargs)):
        return factors
    if kind == "sum":
        return tuple(tensors_in(sum_operands(args, kwargs)))
    return tuple(tensors_in((args, kwargs)))


def _settings(
    function: Function, kind: Kind | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Mapping[str, Any]:
    if kind == "layer":
        return layer_geometry(function, args, kwargs)
    by = kwargs.get("other", args[-1] if args else None)
    if function.__name__ in ("mul", "mul_", "div", "div_") and isinstance(by, int | float):
        return {"by": by}
    return {name: value for name, value in kwargs.items() if isinstance(value, int | float | str | tuple)}


def _writes(function: Function) -> bool:
    return function.__name__ == "__setitem__"

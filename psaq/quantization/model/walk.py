"""Walking through a model block by block: the inputs of any layer without running what lies before its block."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psaq.models.borrowing import calling_instead
from psaq.models.calling import run
from psaq.quantization.model.answer import answer, holds_numbers
from psaq.quantization.model.conversion import structure

Calls = Sequence[Tensor]
"""What a module takes or emits in one pass, call by call."""

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""What a module is called with: by place and by name."""


@dataclass(frozen=True)
class Blocks:
    """The blocks of a model by name, in the order in which they first run.

    Attributes:
        calls: how often each runs in one pass: a detector's head once for every level of its pyramid.
        in_a_row: so many of the first stand in a row: what one of them emits is all that is needed of those before
            it. What each of the others emits is kept.
    """

    names: tuple[str, ...]
    calls: tuple[int, ...]
    in_a_row: int

    def calls_of(self, name: str) -> int | None:
        return dict(zip(self.names, self.calls, strict=True)).get(name)


class Walk:
    """A model and the images that go through it.

    A finished block is never run again: it answers with what it emitted, or with zeros of that shape where a later
    block's answer is all that counts. Neither is a finished layer, until its block is finished, or before the first
    block and between blocks for good. All else is cheap and runs anew.

    Args:
        model: in evaluation mode; its layers may change until they, or their block, are finished.
        batches: (images, channels, height, width) each.
        calls: how often a module runs in one pass, where that is not once and it is no block; 0 where it depends on
            the images.
    """

    def __init__(self, model: nn.Module, batches: list[Tensor], blocks: Blocks, calls: Mapping[str, int] | None = None):
        self.model = model
        self.batches = batches
        self.blocks = blocks
        self.calls = calls or {}
        self._finished: dict[str, list[Calls]] = {}
        self._layers: dict[str, list[Calls]] = {}

    @property
    def kept(self) -> list[Tensor]:
        """What the last finished block emitted, call by call of every batch."""
        return [emitted for calls in list(self._finished.values())[-1] for emitted in calls]

    @torch.no_grad()
    def inputs(self, name: str) -> Iterator[Tensor]:
        """What the module ``name`` is called with, call by call of every batch; nothing behind the last is run."""
        yield from (places[0] for places, _ in self.arguments(name))

    @torch.no_grad()
    def arguments(self, name: str) -> Iterator[Arguments]:
        """As `inputs`, with all that the module is called with."""
        for index in range(len(self.batches)):
            yield from self._until(name, index, before=True)

    def finish_layer(self, name: str) -> None:
        """Keep what a layer emits when it runs next; from now on it stays as it is. Not where a pass calls it several
        times, as one call may depend on another, nor in a model without blocks, where there would be no end to it."""
        if self.blocks.names and self.calls.get(name, 1) == 1:
            self._layers[name] = [()] * len(self.batches)

    @torch.no_grad()
    def finish(self, block: str) -> None:
        """Keep what ``block`` emits; from now on it stays as it is."""
        kept: list[Calls] = [self._until(block, index, before=False) for index in range(len(self.batches))]
        if block in self.blocks.names[: self.blocks.in_a_row]:
            self._finished = {name: list(map(_zeros_like, before)) for name, before in self._finished.items()}
        self._finished[block] = kept
        self._layers = {name: calls for name, calls in self._layers.items() if not _is_within(name, [block])}

    def _until(self, name: str, index: int, before: bool) -> list[Any]:
        calls = self.blocks.calls_of(name) or self.calls.get(name, 1)
        module, reached = self.model.get_submodule(name), _ReachedError(calls)
        if before:
            handle = module.register_forward_pre_hook(lambda _, *call: reached.stop(call), with_kwargs=True)
        else:
            handle = module.register_forward_hook(lambda _, __, output: reached.stop(output))
        kept = {name: calls[index] for name, calls in (self._finished | self._layers).items() if calls[index]}
        try:
            with short_cut(self.model, kept), self._keeping(index):
                run(self.model, self.batches[index])
        except _ReachedError as stop:
            if stop is not reached:
                raise
        finally:
            handle.remove()
        return reached.seen

    @contextmanager
    def _keeping(self, index: int) -> Iterator[None]:
        """Keep what finished layers emit meanwhile, if they have not run since."""

        def keep(name: str, output: Tensor) -> None:
            self._layers[name][index] = [output.clone()]  # an activation function may write over it

        with ExitStack() as stack:
            for name in (name for name, calls in self._layers.items() if not calls[index]):
                layer = self.model.get_submodule(name)
                handle = layer.register_forward_hook(lambda _, __, output, name=name: keep(name, output))
                stack.callback(handle.remove)
            yield


class _ReachedError(Exception):
    """The last call of a module."""

    def __init__(self, calls: int):
        super().__init__()
        self.calls = calls
        self.seen: list[Any] = []

    def stop(self, seen: Any) -> None:
        self.seen.append(seen)
        if len(self.seen) == self.calls:
            raise self


@contextmanager
def short_cut(model: nn.Module, answers: Mapping[str, Calls]) -> Iterator[None]:
    """Let each block answer with what is given for it, call by call of one pass."""
    with ExitStack() as stack:
        for name, calls in answers.items():
            stack.enter_context(calling_instead(model.get_submodule(name), "forward", _answering(calls)))
        yield


@torch.no_grad()
def blocks(qmodel: nn.Module, images: Float[Tensor, "images channels height width"]) -> Blocks:
    """The blocks of a converted model that a walk may pass by: each emits one tensor a call, and is called as often for
    two images as for one. None where the answer would not stay the same."""
    images, two = images[:1], images[:2]
    emitted, of_two = _emitted(qmodel, images), _emitted(qmodel, two)
    names = tuple(name for name in emitted if len(emitted[name]) == len(of_two.get(name, ())))
    calls, wanted = tuple(len(emitted[name]) for name in names), answer(qmodel, images)

    def stays(in_a_row: int, finished: int) -> bool:
        return _is_same(qmodel, images, _answers(emitted, names[:finished], in_a_row), wanted)

    in_a_row = 0
    while in_a_row < len(names) and stays(in_a_row + 1, in_a_row + 1):
        in_a_row += 1
    for row in (in_a_row, 0):
        if names and stays(row, len(names)):
            return Blocks(names, calls, row)
    return Blocks((), (), 0)


def _answers(emitted: Mapping[str, Calls], names: tuple[str, ...], in_a_row: int) -> dict[str, Calls]:
    """The answers of finished blocks, so many of the first of which stand in a row."""
    needless = names[: max(0, in_a_row - 1)]
    return {name: _zeros_like(emitted[name]) if name in needless else emitted[name] for name in names}


def _zeros_like(calls: Calls) -> Calls:
    """Zeros that take no memory."""
    return [x.new_zeros(()).expand(x.shape) for x in calls]


def _is_same(qmodel: nn.Module, images: Tensor, answers: Mapping[str, Calls], wanted: list[Tensor]) -> bool:
    """Whether the model's answer stays where blocks answer so; never of one that holds no number."""
    try:
        with short_cut(qmodel, answers):
            found = answer(qmodel, images)
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, StopIteration):
        return False  # between blocks stands what does not take zeros for their outputs
    return holds_numbers(wanted) and len(found) == len(wanted) and all(map(torch.equal, wanted, found))


def _emitted(qmodel: nn.Module, images: Tensor) -> dict[str, Calls]:
    """What the candidates for blocks emit that are as wanted, in the order in which they first run."""
    emitted: dict[str, list[Tensor]] = {}
    unfit: set[str] = set()

    def watch(name: str, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and inputs and isinstance(inputs[0], Tensor):
            emitted.setdefault(name, []).append(output)
        else:
            unfit.add(name)

    handles = [
        qmodel.get_submodule(name).register_forward_hook(lambda _, i, o, name=name: watch(name, i, o))
        for name in _candidates(qmodel)
    ]
    try:
        run(qmodel, images)
    finally:
        for handle in handles:
            handle.remove()
    return {name: calls for name, calls in emitted.items() if name not in unfit}


def _candidates(qmodel: nn.Module) -> list[str]:
    """The numbered modules that hold attention, the innermost around each, and beside them those that hold layers."""
    read = structure(qmodel)
    attentions = {
        _numbered(name)
        for name, methods in read.watched.items()
        if any(entry for kinds in methods.values() for entry in kinds.get("product", ()))
    }
    chosen = [name for name in attentions if name and not _is_within(name, attentions)]
    beside = {name for name in map(_numbered, read.layers) if name and not _is_within(name, chosen)}
    chosen += [name for name in beside if not any(_is_within(other, [name]) for other in (*chosen, *beside))]
    return sorted(set(chosen))


def _is_within(name: str, others: Iterable[str]) -> bool:
    return any(name.startswith(f"{other}.") for other in others)


def _numbered(name: str) -> str:
    """The innermost module around ``name``, itself included, that is an element of a list."""
    while name and not name.rpartition(".")[2].isdigit():
        name = name.rpartition(".")[0]
    return name


def _answering(calls: Calls) -> Callable[..., Tensor]:
    answers = iter(calls)
    return lambda *_, **__: _fresh(next(answers))


def _fresh(emitted: Tensor) -> Tensor:
    """What the model may write over; zeros that take no memory it cannot, which is seen when blocks are looked for."""
    return emitted if 0 in emitted.stride() else emitted.clone()

"""Walking through a model block by block: the inputs of any layer without running what lies before its block."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psaq.models.calling import run, tensors_of
from psaq.quantization.model.conversion import structure


@dataclass(frozen=True)
class Blocks:
    """The transformer blocks of a model by name, in the order in which they run.

    Attributes:
        in_a_row: whether each hands on to the next all that is needed of it; otherwise what each emits is kept.
    """

    names: tuple[str, ...]
    in_a_row: bool


class Walk:
    """A model and the images that go through it.

    A finished block is never run again: what it emitted is kept and handed on instead. What lies between blocks
    and around them is cheap and runs anew.

    Args:
        model: in evaluation mode; its layers may change as long as their block is not finished.
        batches: (images, channels, height, width) each.
    """

    def __init__(self, model: nn.Module, batches: list[Tensor], blocks: Blocks):
        self.model = model
        self.batches = batches
        self.blocks = blocks
        self._finished: dict[str, list[Tensor]] = {}

    @property
    def kept(self) -> list[Tensor]:
        """What the last finished block emitted, batch by batch."""
        return list(self._finished.values())[-1]

    @torch.no_grad()
    def inputs(self, name: str) -> Iterator[Tensor]:
        """What the module ``name`` is first called with, batch by batch; nothing behind it is run."""
        for index in range(len(self.batches)):
            yield self._until(name, index, before=True)

    @torch.no_grad()
    def pass_through(self, name: str) -> None:
        """Run every batch up to and including the module ``name``."""
        for index in range(len(self.batches)):
            self._until(name, index, before=False)

    @torch.no_grad()
    def finish(self, block: str) -> None:
        """Keep what ``block`` emits; from now on it stays as it is."""
        kept = [self._until(block, index, before=False) for index in range(len(self.batches))]
        if self.blocks.in_a_row:
            self._finished = {finished: [] for finished in self._finished}
        self._finished[block] = kept

    def _until(self, name: str, index: int, before: bool) -> Tensor:
        module, reached = self.model.get_submodule(name), _ReachedError()
        if before:
            handle = module.register_forward_pre_hook(lambda _, inputs: reached.stop(inputs[0]))
        else:
            handle = module.register_forward_hook(lambda _, __, output: reached.stop(output))
        answers = {block: kept[index] if kept else None for block, kept in self._finished.items()}
        try:
            with short_cut(self.model, answers):
                run(self.model, self.batches[index])
        except _ReachedError as stop:
            if stop is not reached:
                raise
        finally:
            handle.remove()
        return reached.tensor


class _ReachedError(Exception):
    tensor: Tensor

    def stop(self, tensor: Tensor) -> None:
        self.tensor = tensor
        raise self


@contextmanager
def short_cut(model: nn.Module, answers: Mapping[str, Tensor | None]) -> Iterator[None]:
    """Let each block answer with what is given for it, or hand on what it is called with where that is None."""
    blocks = {name: model.get_submodule(name) for name in answers}
    try:
        for name, block in blocks.items():
            answer = answers[name]
            block.forward = _unchanged if answer is None else _answering(answer)
        yield
    finally:
        for block in blocks.values():
            vars(block).pop("forward", None)


@torch.no_grad()
def blocks(qmodel: nn.Module, images: Float[Tensor, "images channels height width"]) -> Blocks:
    """The blocks around the attention of a converted model that a walk may hand results past: each is called once, and
    emits one tensor of the shape of what it takes. None where the answer would not stay the same."""
    emitted: dict[str, Tensor] = {}
    candidates = _called_once(qmodel, images, emitted)
    names = tuple(name for name in emitted if name in candidates)
    answer = tensors_of(run(qmodel, images))
    for in_a_row in (True, False):
        answers = {name: None if in_a_row and name != names[-1] else emitted[name] for name in names}
        with short_cut(qmodel, answers):
            if names and _is_same(qmodel, images, answer):
                return Blocks(names, in_a_row)
    return Blocks((), True)


def _is_same(qmodel: nn.Module, images: Tensor, answer: list[Tensor]) -> bool:
    try:
        other = tensors_of(run(qmodel, images))
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError):
        return False  # between blocks stands what does not take their inputs for their outputs
    return len(other) == len(answer) and all(map(torch.equal, answer, other))


def _called_once(qmodel: nn.Module, images: Tensor, emitted: dict[str, Tensor]) -> set[str]:
    """Block candidates as wanted; ``emitted`` receives what they emit, in the order in which they run."""
    calls: dict[str, int] = {}
    unfit: set[str] = set()

    def watch(name: str, inputs: tuple[Any, ...], output: Any) -> None:
        calls[name] = calls.get(name, 0) + 1
        same = isinstance(output, Tensor) and bool(inputs) and isinstance(inputs[0], Tensor)
        if not same or output.shape != inputs[0].shape or calls[name] > 1:
            unfit.add(name)
        elif isinstance(output, Tensor):
            emitted[name] = output

    names = _candidates(qmodel)
    handles = [
        qmodel.get_submodule(name).register_forward_hook(lambda _, i, o, name=name: watch(name, i, o)) for name in names
    ]
    try:
        run(qmodel, images)
    finally:
        for handle in handles:
            handle.remove()
    return set(names) - unfit


def _candidates(qmodel: nn.Module) -> list[str]:
    """The numbered modules that hold attention, the innermost around each."""
    found = {
        _numbered(name)
        for name, methods in structure(qmodel).watched.items()
        if any(entry for kinds in methods.values() for entry in kinds.get("product", ()))
    }
    outermost = {name for name in found if name and not any(name.startswith(f"{other}.") for other in found - {name})}
    return sorted(outermost)


def _numbered(name: str) -> str:
    """The innermost module around ``name``, itself included, that is an element of a list."""
    while name and not name.rpartition(".")[2].isdigit():
        name = name.rpartition(".")[0]
    return name


def _unchanged(x: Float[Tensor, "..."], *_: object, **__: object) -> Float[Tensor, "..."]:
    return x


def _answering(output: Tensor) -> Callable[..., Tensor]:
    return lambda *_, **__: output

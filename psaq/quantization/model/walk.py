"""Walking through a model block by block: the inputs of any layer without running what lies before its block."""

from collections.abc import Callable, Iterable, Iterator, Mapping
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
    """The blocks of a model by name, in the order in which they run.

    Attributes:
        in_a_row: whether what a block emits is all that is needed of those before it; otherwise what each emits is
            kept.
    """

    names: tuple[str, ...]
    in_a_row: bool


class Walk:
    """A model and the images that go through it.

    A finished block is never run again: it answers with what it emitted, or with zeros of that shape where a later
    block's answer is all that counts. What lies between blocks and around them is cheap and runs anew.

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
            self._finished = {name: list(map(_zeros_like, before)) for name, before in self._finished.items()}
        self._finished[block] = kept

    def _until(self, name: str, index: int, before: bool) -> Tensor:
        module, reached = self.model.get_submodule(name), _ReachedError()
        if before:
            handle = module.register_forward_pre_hook(lambda _, inputs: reached.stop(inputs[0]))
        else:
            handle = module.register_forward_hook(lambda _, __, output: reached.stop(output))
        answers = {block: kept[index] for block, kept in self._finished.items()}
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
def short_cut(model: nn.Module, answers: Mapping[str, Tensor]) -> Iterator[None]:
    """Let each block answer with what is given for it."""
    blocks = {name: model.get_submodule(name) for name in answers}
    try:
        for name, block in blocks.items():
            block.forward = _answering(answers[name])
        yield
    finally:
        for block in blocks.values():
            vars(block).pop("forward", None)


@torch.no_grad()
def blocks(qmodel: nn.Module, images: Float[Tensor, "images channels height width"]) -> Blocks:
    """The blocks of a converted model that a walk may pass by: each is called once and emits one tensor. None where the
    answer would not stay the same."""
    emitted: dict[str, Tensor] = {}
    candidates = _called_once(qmodel, images, emitted)
    names = tuple(name for name in emitted if name in candidates)
    answer = tensors_of(run(qmodel, images))
    if names and all(
        _is_same(qmodel, images, _up_to(names[: last + 1], emitted), answer) for last in range(len(names))
    ):
        return Blocks(names, True)
    if names and _is_same(qmodel, images, {name: emitted[name] for name in names}, answer):
        return Blocks(names, False)
    return Blocks((), True)


def _up_to(names: tuple[str, ...], emitted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The answers of finished blocks where the last of them is all that counts."""
    return {name: emitted[name] if name == names[-1] else _zeros_like(emitted[name]) for name in names}


def _zeros_like(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Zeros that take no memory."""
    return x.new_zeros(()).expand(x.shape)


def _is_same(qmodel: nn.Module, images: Tensor, answers: Mapping[str, Tensor], wanted: list[Tensor]) -> bool:
    """Whether the model's answer stays where blocks answer so."""
    try:
        with short_cut(qmodel, answers):
            found = tensors_of(run(qmodel, images))
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError):
        return False  # between blocks stands what does not take zeros for their outputs
    return len(found) == len(wanted) and all(map(torch.equal, wanted, found))


def _called_once(qmodel: nn.Module, images: Tensor, emitted: dict[str, Tensor]) -> set[str]:
    """Block candidates as wanted; ``emitted`` receives what they emit, in the order in which they run."""
    calls: dict[str, int] = {}
    unfit: set[str] = set()

    def watch(name: str, inputs: tuple[Any, ...], output: Any) -> None:
        calls[name] = calls.get(name, 0) + 1
        if not isinstance(output, Tensor) or not inputs or not isinstance(inputs[0], Tensor) or calls[name] > 1:
            unfit.add(name)
        else:
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


def _answering(output: Tensor) -> Callable[..., Tensor]:
    return lambda *_, **__: output

"""Walking through a model block by block: the inputs of any layer without running what lies before its block."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psaq.models.features import attention_layers
from psaq.quantization.model.points import layer_of


class Walk:
    """A model and the images that go through it.

    A finished block is never run again: what it emitted is kept and handed on instead. What lies between blocks
    and around them is cheap and runs anew.

    Args:
        model: in evaluation mode; its layers may change as long as their block is not finished.
        batches: (images, 3, height, width) each.
    """

    def __init__(self, model: nn.Module, batches: list[Tensor]):
        self.model = model
        self.batches = batches
        self._finished: list[str] = []
        self.kept: list[Tensor] = []
        """What the last finished block emitted, batch by batch."""

    @torch.no_grad()
    def inputs(self, name: str) -> Iterator[Tensor]:
        """What the module ``name`` is called with, batch by batch; nothing behind it is run."""
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
        self._finished.append(block)
        self.kept = kept

    def _until(self, name: str, index: int, before: bool) -> Tensor:
        module, reached = self.model.get_submodule(name), _ReachedError()
        if before:
            handle = module.register_forward_pre_hook(lambda _, inputs: reached.stop(inputs[0]))
        else:
            handle = module.register_forward_hook(lambda _, __, output: reached.stop(output))
        try:
            with self._short_cut(index):
                self.model(self.batches[index])
        except _ReachedError as stop:
            if stop is not reached:
                raise
        finally:
            handle.remove()
        return reached.tensor

    @contextmanager
    def _short_cut(self, index: int) -> Iterator[None]:
        blocks = [self.model.get_submodule(name) for name in self._finished]
        try:
            for block in blocks:
                block.forward = _unchanged
            if blocks:
                blocks[-1].forward = _answering(self.kept[index])
            yield
        finally:
            for block in blocks:
                del block.forward


class _ReachedError(Exception):
    tensor: Tensor

    def stop(self, tensor: Tensor) -> None:
        self.tensor = tensor
        raise self


def blocks(model: nn.Module) -> list[str]:
    """The transformer blocks by name, in the order in which they run."""
    return [layer_of(attention) for attention in attention_layers(model)]


def _unchanged(x: Float[Tensor, "..."], *_: object, **__: object) -> Float[Tensor, "..."]:
    return x


def _answering(output: Tensor) -> Callable[..., Tensor]:
    return lambda *_, **__: output

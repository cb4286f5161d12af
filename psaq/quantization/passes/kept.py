"""Changes that must leave a model's answer as it is, and are taken back where they do not."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from psaq.models.calling import run, tensors_of

_LARGEST = 1e-3
"""Relative error of the answer that float32 may leave behind a change: rotations leave some 1e-6, and a wrong one
leaves an error of about 1."""


@torch.no_grad()
def kept(model: nn.Module, images: Tensor, change: Callable[[], object]) -> bool:
    """Make ``change``, which touches parameters only. Returns whether the answer stayed; if not, all is as it was."""
    before, saved = _answer(model, images), {name: tensor.clone() for name, tensor in model.named_parameters()}
    change()
    if _is_close(_answer(model, images), before):
        return True
    for name, parameter in list(model.named_parameters()):
        if name in saved:
            parameter.copy_(saved[name])
        else:
            owner, _, own_name = name.rpartition(".")
            setattr(model.get_submodule(owner), own_name, None)
    return False


def _answer(model: nn.Module, images: Tensor) -> list[Tensor]:
    return tensors_of(run(model, images))


def _is_close(answer: list[Tensor], wanted: list[Tensor]) -> bool:
    if [tensor.shape for tensor in answer] != [tensor.shape for tensor in wanted]:
        return False
    return all(
        bool((now.double() - then.double()).norm() <= _LARGEST * then.double().norm())
        for now, then in zip(answer, wanted, strict=True)
    )

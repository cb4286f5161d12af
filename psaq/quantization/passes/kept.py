"""Changes that must leave a model's answer as it is, and are taken back where they do not."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from psaq.quantization.model.answer import answer, holds_numbers

_LARGEST = 1e-3
"""Relative error of the answer that float32 may leave behind a change: rotations leave some 1e-6, and a wrong one
leaves an error of about 1."""


@torch.no_grad()
def kept(model: nn.Module, images: Tensor, change: Callable[[], object]) -> bool:
    """Make ``change``, which touches parameters only. Returns whether the answer stayed; if not, or if the answer holds
    no number that could tell, all is as it was."""
    before, saved = answer(model, images), {name: tensor.clone() for name, tensor in model.named_parameters()}
    if not holds_numbers(before):
        return False
    change()
    if _is_close(answer(model, images), before):
        return True
    for name, parameter in list(model.named_parameters()):
        if name in saved:
            parameter.copy_(saved[name])
        else:
            owner, _, own_name = name.rpartition(".")
            setattr(model.get_submodule(owner), own_name, None)
    return False


def _is_close(found: list[Tensor], wanted: list[Tensor]) -> bool:
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in wanted]:
        return False
    return all(
        bool((now.double() - then.double()).norm() <= _LARGEST * then.double().norm())
        for now, then in zip(found, wanted, strict=True)
    )

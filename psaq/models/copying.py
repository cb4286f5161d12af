"""Copies of models, whatever they have put aside for themselves."""

import copy
from typing import TypeVar

from torch import nn

from psaq.models.borrowing import borrowed
from psaq.models.operations import tensors_in

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def copied(model: AnyModule) -> AnyModule:
    """A deep copy. What the model keeps of a run with gradients, such as attention biases that it has looked up once,
    comes along without its history, which torch does not copy."""
    with borrowed(model):  # otherwise another thread's hooks would come along
        kept = (tensor for module in model.modules() for tensor in tensors_in(vars(module)))
        return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in kept if not tensor.is_leaf})

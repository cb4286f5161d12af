"""Where a model is and in what type it computes: what images have to be for it."""

from functools import reduce
from itertools import chain

import torch
from torch import Tensor, nn

from psaq.errors import PsaqError


def tensor_of(model: nn.Module) -> Tensor:
    """A tensor on the model's device and in its type: its first parameter; of a deployed model whose every layer is in
    integers, which has none, a buffer of scales. Raises PsaqError for a model without either."""
    floats = (buffer for buffer in model.buffers() if buffer.is_floating_point())
    for tensor in chain(model.parameters(), floats):
        return tensor
    raise PsaqError(f"{type(model).__name__}: has no parameters; give a model with its weights")


def device_of(model: nn.Module) -> torch.device:
    """Where the model computes. Raises PsaqError as `tensor_of`."""
    return tensor_of(model).device


def type_of(model: nn.Module) -> torch.dtype:
    """The type that holds all of its parameters. Raises PsaqError as `tensor_of`."""
    return reduce(torch.promote_types, {parameter.dtype for parameter in model.parameters()}, tensor_of(model).dtype)

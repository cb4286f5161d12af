"""What stands around a model without being part of it: torch.compile's, DataParallel's, DDP's modules."""

import sys
from collections.abc import Iterator

from torch import nn

from psaq.errors import PsaqError
from psaq.progress import note


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside any number of wrappers, which is said in a line; without one the model itself.

    Raises:
        PsaqError: no module, or one without parameters or without their values.
    """
    if not isinstance(model, nn.Module):
        raise PsaqError(f"model {model!r}: must be a torch.nn.Module, such as psaq.load_model(NAME) returns")
    *around, model = _opened(model)
    if around:
        note(f"took the {type(model).__name__} out of {', '.join(type(wrapper).__name__ for wrapper in around)}")
    first = next(model.parameters(), None)
    if first is None:
        raise PsaqError(f"{type(model).__name__}: has no parameters; give a model with its weights")
    if first.is_meta:
        raise PsaqError(f"{type(model).__name__}: is on the device meta, where weights have no values; load them first")
    return model


def innermost(model: nn.Module) -> nn.Module:
    """The model inside any number of wrappers, for questions that they do not answer."""
    return list(_opened(model))[-1]


def _opened(model: nn.Module) -> Iterator[nn.Module]:
    """The wrappers, from the outermost on, and the model."""
    inside: nn.Module | None = model
    while inside is not None:
        yield inside
        inside = _inside(inside)


def _inside(model: nn.Module) -> nn.Module | None:
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return model.module
    # A compiled module cannot be there before its class was imported, which takes a second that few need.
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    return model._orig_mod if compiler is not None and isinstance(model, compiler.OptimizedModule) else None

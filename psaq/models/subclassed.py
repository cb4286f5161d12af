"""Subclasses made on the spot: a module of any class, with quantisation points."""

import functools
from typing import Any

from torch import nn


def subclassed(module: nn.Module, mixin: type[nn.Module]) -> None:
    """Make ``module`` an instance of a subclass of its own class whose methods are those of ``mixin`` first.

    The subclass bears the class's name. Copies and pickles of the module are made anew from the two, for there is no
    place where a reader of the pickle would find the subclass itself.
    """
    own: Any = type(module)
    parts: tuple[Any, ...] = (mixin, *getattr(own, "_parts", (own,)))
    module.__class__ = _combined(*parts)


def own_class_again(module: nn.Module) -> None:
    """Undo `subclassed`; what the mixins keep in the module stays there."""
    module.__class__ = getattr(type(module), "_parts", (type(module),))[-1]


@functools.cache
def _combined(*parts: Any) -> Any:
    """The subclass of mixins and, last, the class that they are mixed into."""
    base = parts[-1]
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    combined: Any = type(base.__name__, parts, {**names, "__reduce_ex__": _reduced})
    combined._parts = parts
    return combined


def _reduced(module: Any, _: object) -> tuple[Any, ...]:
    return _blank, module._parts, module.__getstate__()


def _blank(*parts: Any) -> nn.Module:
    combined = _combined(*parts)
    return combined.__new__(combined)

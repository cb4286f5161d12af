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


def without(module: nn.Module, mixin: type[nn.Module] | tuple[type[nn.Module], ...]) -> None:
    """Undo `subclassed` for such mixins; what they keep in the module stays there."""
    parts: tuple[Any, ...] = getattr(type(module), "_parts", (type(module),))
    left = (*(part for part in parts[:-1] if not issubclass(part, mixin)), parts[-1])
    module.__class__ = _combined(*left) if len(left) > 1 else left[0]


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

"""A model that several threads hold: what one of them lends itself of it, the others do not see.

Hooks, evaluation mode and gradients belong to the module, which all its holders share. So who changes them, or copies
the module, borrows it first, and hooks listen only to the thread that set them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock, RLock, get_ident
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

_locks: "WeakKeyDictionary[nn.Module, Any]" = WeakKeyDictionary()
_finding = Lock()


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Wait until no other thread borrows ``model``, and keep it inside the block. One thread may do so repeatedly."""
    with _finding:
        lock = _locks.setdefault(model, RLock())
    with lock:
        yield


def only_here(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook, deaf to runs of the module in other threads than this one."""
    thread = get_ident()

    def heard(*args: Any, **kwargs: Any) -> Any:
        return hook(*args, **kwargs) if get_ident() == thread else None

    return heard

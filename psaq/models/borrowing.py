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
_evaluators: "WeakKeyDictionary[nn.Module, tuple[int, list[nn.Module]]]" = WeakKeyDictionary()
"""How many evaluate a model just now, and which of its parts were in training mode before the first."""
_finding = Lock()


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Wait until no other thread borrows ``model``, and keep it inside the block. One thread may do so repeatedly."""
    with _finding:
        lock = _locks.setdefault(model, RLock())
    with lock:
        yield


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block, whoever else is in one; after the last of them every part is as it was."""
    entered: list[nn.Module] = []
    try:
        for model in models:
            _enter(model)
            entered.append(model)
        yield
    finally:
        for model in entered:
            _leave(model)


def _enter(model: nn.Module) -> None:
    with _finding:
        count, training = _evaluators.get(model, (0, [module for module in model.modules() if module.training]))
        _evaluators[model] = count + 1, training
        model.eval()


def _leave(model: nn.Module) -> None:
    with _finding:
        count, training = _evaluators.pop(model)
        if count > 1:
            _evaluators[model] = count - 1, training
            return
        for module in training:
            module.training = True


def only_here(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook, deaf to runs of the module in other threads than this one."""
    thread = get_ident()

    def heard(*args: Any, **kwargs: Any) -> Any:
        return hook(*args, **kwargs) if get_ident() == thread else None

    return heard


@contextmanager
def calling_instead(module: nn.Module, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Another method of this name inside the block; afterwards that of the class, or the instance's own, as before."""
    attributes = vars(module)
    own = {name: attributes[name]} if name in attributes else {}
    attributes[name] = method
    try:
        yield
    finally:
        del attributes[name]
        attributes.update(own)

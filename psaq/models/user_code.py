"""``FILE.py:FUNCTION``: a model that a file of the user's own builds."""

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import nn

from psaq.errors import PsaqError

_MARK = ".py:"


def is_user_code(name: str) -> bool:
    """Whether a name is that of a function in a Python file."""
    return _MARK in name


def user_model(name: str, options: Mapping[str, Any]) -> nn.Module:
    """What the function returns; the file is run as the user's own code.

    Args:
        options: keyword arguments for the function.

    Raises:
        PsaqError: no such file or function, an error in it, arguments it does not take, or no torch.nn.Module.
    """
    path, function = name.rsplit(":", 1)
    file = Path(path).resolve()
    if not file.is_file():
        raise PsaqError(f"model {name!r}: there is no file {path}; name it as FILE.py:FUNCTION")
    with _importing_beside(file):
        build = _function(_executed(file), function, name)
        _check_arguments(build, options, name)
        with _naming(file):
            model = build(**options)
    if not isinstance(model, nn.Module):
        raise PsaqError(f"model {name!r}: returns a {type(model).__name__}; it must return a torch.nn.Module")
    return model


def _executed(file: Path) -> Any:
    name = f"psaq_user_{file.stem}"
    specification = importlib.util.spec_from_file_location(name, file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    with _naming(file):
        specification.loader.exec_module(module)
    return module


def _function(module: Any, name: str, called: str) -> Callable[..., Any]:
    function = getattr(module, name, None)
    if not callable(function):
        functions = (value for value in vars(module).values() if inspect.isfunction(value))
        own = [value.__name__ for value in functions if value.__module__ == module.__name__]
        raise PsaqError(f"model {called!r}: has no function {name!r}; its functions are {', '.join(own) or 'none'}")
    return function


def _check_arguments(function: Callable[..., Any], options: Mapping[str, Any], name: str) -> None:
    try:
        inspect.signature(function).bind(**options)
    except TypeError as error:
        given = ", ".join(options) or "no arguments"
        raise PsaqError(
            f"model {name!r}: cannot be called with {given} ({error}); give its parameters defaults"
        ) from error


@contextmanager
def _importing_beside(file: Path) -> Iterator[None]:
    """Let the file import its neighbours, as ``python FILE.py`` would."""
    sys.path.insert(0, str(file.parent))
    try:
        yield
    finally:
        with suppress(ValueError):  # the file may have tidied up itself
            sys.path.remove(str(file.parent))


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Whatever goes wrong inside is the file's error, with the line it came from."""
    try:
        yield
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
        where = f"line {lines[-1]}: " if lines else ""
        raise PsaqError(f"{file}: {where}{type(error).__name__}: {error}; mend the file") from error

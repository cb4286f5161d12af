"""A frozen dataclass as a program: its fields are the options, ``run`` does the work."""

import dataclasses
import io
import os
import select
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from psaq.errors import PsaqError


class Command(Protocol):
    """What a command's dataclass offers beside its options. One with ``scales_out = True`` runs under torchrun."""

    def run(self) -> None: ...


C = TypeVar("C", bound=Command)


def run_command(command: type[C], arguments: list[str] | None = None, prog: str | None = None) -> None:
    """Parse ``arguments`` (default: the process's own) into ``command`` and run it.

    A command with presets (``presets() -> dict[str, instance]``) takes its defaults from ``--preset NAME``.

    Exits with code 2 and one message where the input is wrong; with 130 on Ctrl-C and 143 on SIGTERM, and the
    command that goes on; with 141 and no word where nobody reads its output any more.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    with while_read():
        parsed = _parsed(command, arguments, prog)
        _run_or_say_why_not(parsed, prog or command.__name__.lower(), arguments)


def _parsed(command: type[C], arguments: list[str], prog: str | None) -> Any:
    import tyro

    preset = _preset(command, arguments)
    defaults = {} if preset is None else {"default": preset}
    return tyro.cli(command, args=arguments, prog=prog, config=(tyro.conf.OmitArgPrefixes,), **defaults)


def _run_or_say_why_not(parsed: Any, name: str, arguments: list[str]) -> None:
    try:
        with _told_to_stop():
            _run(parsed, name)
    except PsaqError as error:
        print(f"psaq: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        print(f"psaq: error: {_out_of_memory(error, parsed)}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt as stopped:
        told = isinstance(stopped, _Terminated)
        goes_on = shlex.join([*name.split(), *arguments])
        print(f"psaq: {'stopped' if told else 'interrupted'}; to go on: {goes_on}", file=sys.stderr)
        raise SystemExit(143 if told else 130) from None


@contextmanager
def while_read() -> Iterator[None]:
    """End quietly, as other programs do, where what reads the output has left: `psaq ... | head`."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_left():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the interpreter's end
        raise SystemExit(141) from None


def _reader_left() -> bool:
    """Whether it was standard output, and no other pipe, that broke."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in output.poll(0))


def _is_out_of_memory(error: RuntimeError) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError)


def _out_of_memory(error: RuntimeError, command: Any) -> str:
    """What happened, and the command's own options that need less: none is changed unasked, for the batch is a part
    of what a run's result depends on."""
    there = _option_names(command)
    fewer = [f"--{name.replace('_', '-')}" for name in ("batch_size", "num_images") if name in there]
    ways = [f"a smaller {' or '.join(fewer)}"] if fewer else []
    ways += ["--device cpu"] if "device" in there else []
    what = f"the GPU's memory is full ({str(error).partition('. GPU ')[0]})"
    return f"{what}; give {', or '.join(ways)}" if ways else f"{what}; make room on it"


def _option_names(command: Any) -> set[str]:
    """The names of a command's options, those of its groups included."""
    names = set()
    for field in dataclasses.fields(command):
        value = getattr(command, field.name)
        names |= _option_names(value) if dataclasses.is_dataclass(value) else {field.name}
    return names


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which like Ctrl-C lets everything be put in order first."""


@contextmanager
def _told_to_stop() -> Iterator[None]:
    """Raise `_Terminated` where the process is asked to end; only the main thread is told."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise _Terminated

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _run(command: Any, name: str) -> None:
    """Run a command; as one of several ranks where torchrun started it."""
    from psaq.distributed import SharedError, is_first, is_launched, launched

    if not is_launched():
        command.run()
        return
    if not getattr(command, "scales_out", False):
        raise PsaqError(f"{name} runs as one process: start it without torchrun")
    with launched():
        try:
            command.run()
        except SharedError:
            if is_first():
                raise
            # The launcher ends the others as soon as one fails, and the first one still has to say why.
            raise SystemExit(0) from None


def _preset(command: type[Command], arguments: list[str]) -> Any:
    """The instance that ``--preset NAME`` names, for its fields to be the defaults of this call."""
    presets: dict[str, Command] = getattr(command, "presets", dict)()
    for index, argument in enumerate(arguments):
        option, _, value = argument.partition("=")
        if option == "--preset":
            name = value or next(iter(arguments[index + 1 :]), "")
            return presets.get(name)
    return None

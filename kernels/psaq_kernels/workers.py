"""Calls in a process of their own: one that hangs or dies takes nothing with it but its answer."""

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

DYING_SECONDS = 5.0  # that a process which was told to end is waited for


class CallError(RuntimeError):
    """A call raised, took too long, or its process died; the message says which."""


class Worker:
    """One process that makes calls, one after the other; a lost one is replaced at the next call.

    Functions and arguments must be picklable, functions by their module and name.

    Args:
        niceness: how far the process stands back behind others.
    """

    def __init__(self, niceness: int = 0):
        self._niceness = niceness
        self._process: Any = None
        self._pipe: Connection | None = None

    def call(self, function: Callable[..., Any], *arguments: Any, seconds: float) -> Any:
        """What ``function(*arguments)`` returns in the process.

        Raises:
            CallError: it raised, was not done in ``seconds``, or the process died.
        """
        pipe = self._pipe or self._start()
        try:
            pipe.send((function, arguments))
            if not pipe.poll(seconds):
                raise CallError(f"not done in {seconds:g} s")
            succeeded, answer = pipe.recv()
        except (EOFError, OSError) as error:
            self.end()
            raise CallError("its process died") from error
        except CallError:
            self.end()
            raise
        if not succeeded:
            raise CallError(answer)
        return answer

    def end(self) -> None:
        """End the process, whatever it is doing."""
        if self._pipe is None:
            return
        self._process.kill()  # first: a thread that waits for its answer wakes by it
        self._process.join(DYING_SECONDS)
        self._pipe.close()
        self._pipe = None

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")  # a GPU's driver does not survive a fork
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._niceness), daemon=True)
        self._process.start()
        theirs.close()
        return self._pipe


class Workers:
    """Several workers that share the calls; use them in a ``with`` statement.

    Args:
        processes: at once; by default one for every core that this process may use.
        niceness: how far they stand back behind others.
    """

    def __init__(self, processes: int | None = None, niceness: int = 0):
        self._threads = ThreadPoolExecutor(processes or cores(), initializer=self._enlist)
        self._niceness = niceness
        self._enlisted: list[Worker] = []
        self._own = threading.local()  # a thread's worker

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        """Give up what has not been answered."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._enlisted:
            worker.end()

    def submit(self, function: Callable[..., Any], *arguments: Any, seconds: float) -> "Future[Any]":
        """As `Worker.call`, later."""
        return self._threads.submit(lambda: self._own.worker.call(function, *arguments, seconds=seconds))

    def _enlist(self) -> None:
        self._own.worker = Worker(self._niceness)
        self._enlisted.append(self._own.worker)


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))


def _serve(pipe: Connection, niceness: int) -> None:
    os.nice(niceness)
    with suppress(EOFError, OSError):  # nobody asks any more, or waits for the answer
        while True:
            function, arguments = pipe.recv()
            pipe.send(_answer(function, arguments))


def _answer(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    try:
        return True, function(*arguments)
    except Exception as error:  # compilers and drivers raise what they like, and not all of it can be pickled
        return False, f"{type(error).__name__}: {error}"

"""Compiling Triton kernels for the GPU at hand on all cores at once, before they are launched.

Launches are recorded instead of made, compiled in processes that never touch the GPU, and found by the real launch in
Triton's own cache on disk.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from psaq_kernels.aot import Resources, resources
from psaq_kernels.workers import Workers, cores

COMPILE_SECONDS = 120.0  # after which a compilation counts as hanging
ONE, SIXTEENS, OTHER, LONG = 1, 16, 3, (1 << 40) + 1  # the integers that Triton tells apart when it compiles


@dataclass(frozen=True)
class Launch:
    """All of a launch that decides its machine code; two with the same are equal."""

    module: str
    kernel: str
    arguments: tuple[tuple[str, Any], ...]  # a tensor is its dtype, a number stands for its like

    @staticmethod
    def of(kernel: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> "Launch":
        values = dict(zip(kernel.arg_names, arguments, strict=False)) | dict(named)
        free = {parameter.name: parameter for parameter in kernel.params if not parameter.is_constexpr}
        typical = {name: _typical(value, free[name]) if name in free else value for name, value in values.items()}
        return Launch(kernel.fn.__module__, kernel.fn.__name__, tuple(sorted(typical.items())))


def _typical(value: Any, parameter: Any) -> Any:
    if isinstance(value, Tensor):
        return value.dtype
    if isinstance(value, float):
        return float(OTHER)
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if not -(2**31) <= value < 2**31:
        return LONG if value % SIXTEENS or parameter.do_not_specialize else LONG - 1
    if parameter.do_not_specialize:
        return OTHER
    return ONE if value == ONE else OTHER if value % SIXTEENS else SIXTEENS


def launches_of(run: Callable[[], object]) -> list[Launch]:
    """The launches of Triton kernels that ``run`` would make, each kind once. None is made, so that what ``run``
    computes is meaningless."""
    with _recording() as found:
        run()
    return list(found)


@contextmanager
def _recording() -> Iterator[dict[Launch, None]]:
    from triton.runtime.jit import JITFunction

    found: dict[Launch, None] = {}

    def record(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> None:
        found[Launch.of(kernel, arguments, named)] = None

    launch = JITFunction.run
    JITFunction.run = record
    try:
        yield found
    finally:
        JITFunction.run = launch


# In processes of their own --------------------------------------------------------------------------------------------


class Compilers:
    """Compiles launches side by side; use it in a ``with`` statement.

    Args:
        target: for which GPU; Triton's description of the one at hand by default.
        processes: at once; by default one for every core.
    """

    def __init__(self, target: Any = None, processes: int | None = None):
        self._target = target or _target_at_hand()
        self._workers = Workers(processes, niceness=5)
        self._begun: dict[Launch, Future[Resources]] = {}

    def __enter__(self) -> "Compilers":
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.__exit__()

    def compile(self, launch: Launch) -> "Future[Resources]":
        """What the launch's kernel uses, later; the future raises `CallError` where it does not compile."""
        if launch not in self._begun:
            compiled = self._workers.submit(compile_launch, launch, self._target, seconds=COMPILE_SECONDS)
            self._begun[launch] = compiled
        return self._begun[launch]


def compile_launch(launch: Launch, target: Any) -> Resources:
    """Compile for ``target``, into Triton's cache, without a GPU."""
    from triton.runtime import driver
    from triton.runtime.jit import MockTensor

    driver.set_active(_DriverOfAbsent(target))
    kernel = getattr(importlib.import_module(launch.module), launch.kernel)
    values = {name: MockTensor.wrap_dtype(value) for name, value in launch.arguments}
    return resources(kernel.warmup(grid=(1,), **values), is_amd=target.backend == "hip")


@dataclass(frozen=True)
class _DriverOfAbsent:
    """As much of a driver as compiling asks for."""

    target: Any

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def _target_at_hand() -> Any:
    from triton.runtime import driver

    return driver.active.get_current_target()


def compile_before_use(run: Callable[[], object]) -> int:
    """Compile the Triton kernels that ``run`` launches, on all cores; the next ``run`` finds them compiled.

    Returns how many it compiled: none where there is no GPU, or nothing that this process has not compiled before.
    """
    if not torch.cuda.is_available():
        return 0
    launches = [launch for launch in launches_of(run) if launch not in _compiled]
    if launches:
        with Compilers(processes=min(cores(), len(launches))) as compilers:
            for future in [compilers.compile(launch) for launch in launches]:
                future.exception()  # a refusal is for the launch itself to report
    _compiled.update(launches)
    return len(launches)


_compiled: set[Launch] = set()  # by this process, which need not be done twice

"""Timing a kernel's configurations on the GPU at hand: all of them coarsely, the best of them again and finely."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch

from psaq_kernels.aot import Resources
from psaq_kernels.compiling import Compilers, launches_of
from psaq_kernels.devices import DeviceLimits
from psaq_kernels.tunable import Config, MachineRates, Problem, Tunable, tunable_named
from psaq_kernels.tuning import Entry, triton_version
from psaq_kernels.workers import CallError

COARSE_MS, FINE_MS = 20, 80  # that a configuration is timed
FINALISTS, FINAL_FACTOR = 3, 1.2  # the best so many are timed finely, if at most so much slower than the best
TIMING_SECONDS = 120.0  # after which a timing counts as hanging; it includes a process's start
MATMUL_SIZE = 4096
COPY_BYTES = 1 << 28
TOY_MATMUL, TOY_COPY = 64, 1 << 10  # where there is no GPU whose rates would count

Clock = Callable[[Callable[[], object], float], float]
"""Runs a launch for some milliseconds and returns its median time in microseconds."""


class Caller(Protocol):
    """Makes calls, as a `Worker` does in a process of its own."""

    def call(self, function: Callable[..., Any], *arguments: Any, seconds: float) -> Any: ...

    def end(self) -> None: ...


class TuningError(RuntimeError):
    """A kernel's default configuration does not run on this device."""


@dataclass(frozen=True)
class Timing:
    """One configuration's time, or why it was refused."""

    config: Config
    microseconds: float | None
    refusal: str = ""


@dataclass(frozen=True)
class Job:
    """A problem to tune a kernel for."""

    kernel: Tunable
    problem: Problem
    limits: DeviceLimits

    @property
    def configs(self) -> list[Config]:
        """Those worth timing, the default first."""
        return self.kernel.survivors(self.problem, self.limits)

    @property
    def bucket(self) -> str:
        return self.kernel.bucket(self.problem)

    def entry(self, timings: Sequence["Timing"]) -> Entry:
        """The table's entry for the fastest of what `time_job` timed finely."""
        fine = [timing for timing in timings[len(self.configs) :] if timing.microseconds is not None]
        default = next((timing for timing in fine if timing.config == timings[0].config), timings[0])
        best = min((default, *fine), key=lambda timing: timing.microseconds or math.inf)
        return Entry(
            operation=self.kernel.name,
            bucket=self.bucket,
            source=self.kernel.source_hash,
            triton=triton_version(),
            device=self.limits.name,
            capability=self.limits.capability,
            config=best.config,
            default_us=default.microseconds or math.inf,
            best_us=best.microseconds or math.inf,
        )


# Compiling ------------------------------------------------------------------------------------------------------------


def start_compiling(job: Job, compilers: Compilers) -> list[list[Future[Resources]]]:
    """Begin to compile what the job's configurations launch; for each configuration, what there is to wait for."""

    def begin(config: Config) -> list[Future[Resources]]:
        launches = launches_of(lambda: job.kernel.prepare(job.problem, torch.device("meta"))(config))
        return [compilers.compile(launch) for launch in launches]

    return [begin(config) for config in job.configs]


def refusal(compilations: Sequence[Future[Resources]], limits: DeviceLimits) -> str:
    """Wait for a configuration's compilations; why it cannot be launched, or nothing."""
    for compilation in compilations:
        try:
            shared = compilation.result().shared_bytes
        except CallError as error:
            return str(error)
        if shared > limits.shared_bytes:
            return f"takes {shared} bytes of shared memory; a block has {limits.shared_bytes}"
    return ""


# Timing ---------------------------------------------------------------------------------------------------------------


def time_job(job: Job, caller: Caller, refusals: Sequence[str]) -> Iterator[Timing]:
    """Time every configuration of the job coarsely, in their order, then the default and the best finely.

    Args:
        refusals: for each configuration, why it is passed over, or nothing.

    Raises:
        TuningError: the default does not run.
    """
    coarse: list[Timing] = []
    for config, reason in zip(job.configs, refusals, strict=True):
        timing = Timing(config, None, reason) if reason else _time(job, config, caller, COARSE_MS)
        if not coarse and timing.microseconds is None:
            raise TuningError(f"{job.kernel.name}: the default ({config}) does not run here: {timing.refusal}")
        coarse.append(timing)
        yield timing
    for config in finalists(coarse):
        yield _time(job, config, caller, FINE_MS)


def finalists(coarse: Sequence[Timing]) -> list[Config]:
    """The default, which is the first of ``coarse``, and those that may be the best."""
    timed = sorted((timing.microseconds, rank) for rank, timing in enumerate(coarse) if timing.microseconds is not None)
    near = [rank for microseconds, rank in timed[:FINALISTS] if microseconds <= FINAL_FACTOR * timed[0][0]]
    return [coarse[rank].config for rank in dict.fromkeys([0, *near])]


def _time(job: Job, config: Config, caller: Caller, milliseconds: float) -> Timing:
    arguments = (job.kernel.name, tuple(job.problem.items()), config, milliseconds)
    try:
        return Timing(config, caller.call(time_configuration, *arguments, seconds=TIMING_SECONDS))
    except CallError as error:
        caller.end()  # what went wrong may have broken the process's hold on the GPU
        return Timing(config, None, str(error))


def time_configuration(
    kernel: str, problem: tuple[tuple[str, int | str], ...], config: Config, milliseconds: float
) -> float:
    """The median time of a launch in microseconds: the call that a process of its own makes."""
    launch = _prepared(kernel, problem)
    return gpu_clock(lambda: launch(config), milliseconds)


@lru_cache(maxsize=1)
def _prepared(kernel: str, problem: tuple[tuple[str, int | str], ...]) -> Callable[[Config], object]:
    """The last problem's tensors are kept; those of the one before would fill the GPU."""
    return tunable_named(kernel).prepare(dict(problem), torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def gpu_clock(launch: Callable[[], object], milliseconds: float) -> float:
    """The median time in microseconds, with a cold L2 cache; of one run where the interpreter stands in for a GPU."""
    if not torch.cuda.is_available():
        started = time.perf_counter()
        launch()
        return 1e6 * (time.perf_counter() - started)
    from triton.testing import do_bench

    return 1000 * do_bench(launch, warmup=milliseconds / 4, rep=milliseconds, return_mode="median")


# The machine ----------------------------------------------------------------------------------------------------------


def measure_rates(device: torch.device, clock: Clock) -> MachineRates:
    """The copy bandwidth and the matmul rates of the device, float32 without TF32."""
    source = torch.empty(COPY_BYTES if device.type == "cuda" else TOY_COPY, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.numel() / (clock(lambda: target.copy_(source), COARSE_MS) * 1e-6)
    rates = {name: _matmul_rate(name, device, clock) for name in ("float32", "float16", "bfloat16", "int8")}
    return MachineRates(bandwidth, rates)


def _matmul_rate(name: str, device: torch.device, clock: Clock) -> float:
    """On random numbers: on ones and zeros, tensor cores run faster."""
    size = MATMUL_SIZE if device.type == "cuda" else TOY_MATMUL
    a = (20 if name == "int8" else 1) * torch.randn(size, size, device=device)
    a = a.to(getattr(torch, name))
    multiply = torch._int_mm if name == "int8" else torch.mm
    return 2 * size**3 / (clock(lambda: multiply(a, a.t()), COARSE_MS) * 1e-6)

"""Timing a kernel's configurations on the GPU at hand."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from psaq_kernels.devices import DeviceLimits, device_limits
from psaq_kernels.tunable import Config, MachineRates, Problem, Tunable
from psaq_kernels.tuning import Entry, triton_version

Clock = Callable[[Callable[[], object]], float]
"""Runs a launch repeatedly and returns its median time in microseconds."""

MATMUL_SIZE = 4096
COPY_BYTES = 1 << 28


class TuningError(RuntimeError):
    """A kernel's default configuration does not run on this device."""


@dataclass(frozen=True)
class Timing:
    """One configuration's time; None where the device refused it."""

    config: Config
    microseconds: float | None


def time_candidates(tunable: Tunable, problem: Problem, device: torch.device, clock: Clock) -> Iterator[Timing]:
    """Time every candidate, the default first. One that the device refuses is passed over.

    Raises:
        TuningError: the device refuses the default.
    """
    limits = device_limits(device)
    launch = tunable.prepare(problem, device)
    default = tunable.default(problem, limits)
    others = [config for config in tunable.candidates(problem, limits) if config != default]
    for config in (default, *others):
        yield Timing(config, _time(tunable, launch, config, clock, required=config == default))


def _time(
    tunable: Tunable, launch: Callable[[Config], object], config: Config, clock: Clock, required: bool
) -> float | None:
    try:
        return clock(lambda: launch(config))
    except Exception as error:  # compilers and drivers raise what they like
        if required:
            raise TuningError(f"{tunable.name}: the default ({config}) does not run here: {error}") from error
        return None


def best_entry(tunable: Tunable, problem: Problem, timings: list[Timing], limits: DeviceLimits) -> Entry:
    """The table's entry for the fastest configuration; ``timings`` begin with the default's."""
    timed = [(timing.microseconds, timing.config) for timing in timings if timing.microseconds is not None]
    microseconds, config = min(timed, key=lambda pair: pair[0])
    return Entry(
        operation=tunable.name,
        bucket=tunable.bucket(problem),
        source=tunable.source_hash,
        triton=triton_version(),
        device=limits.name,
        capability=limits.capability,
        config=config,
        default_us=timed[0][0],
        best_us=microseconds,
    )


def gpu_clock(launch: Callable[[], object]) -> float:
    """The median time in microseconds, with a cold L2 cache."""
    from triton.testing import do_bench

    return 1000 * do_bench(launch, return_mode="median")


def measure_rates(device: torch.device, clock: Clock) -> MachineRates:
    """The copy bandwidth and the matmul rates of the device, float32 without TF32."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * COPY_BYTES / (clock(lambda: target.copy_(source)) * 1e-6)
    rates = {name: _matmul_rate(name, device, clock) for name in ("float32", "float16", "bfloat16", "int8")}
    return MachineRates(bandwidth, rates)


def _matmul_rate(name: str, device: torch.device, clock: Clock) -> float:
    a = torch.ones(MATMUL_SIZE, MATMUL_SIZE, device=device).to(getattr(torch, name))
    multiply = torch._int_mm if name == "int8" else torch.mm
    return 2 * MATMUL_SIZE**3 / (clock(lambda: multiply(a, a.t())) * 1e-6)

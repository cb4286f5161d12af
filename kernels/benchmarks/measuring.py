"""Time, peak memory and CSV files, for the benchmarks beside this file."""

import csv
import importlib.util
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"

Run = Callable[[], object]


def milliseconds(run: Run, device: torch.device, repeats: int) -> tuple[float, float, float]:
    """Median, 20th and 80th percentile of the time of ``run``."""
    if device.type == "cuda":
        from triton.testing import do_bench

        median, p20, p80 = do_bench(run, quantiles=[0.5, 0.2, 0.8])
        return median, p20, p80
    run()
    taken = sorted(_seconds(run) for _ in range(repeats))
    low, high = (taken[round(part * (repeats - 1))] for part in (0.2, 0.8))
    return 1e3 * statistics.median(taken), 1e3 * low, 1e3 * high


def _seconds(run: Run) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def peak_megabytes(prepare: Callable[..., Run], *arguments: Any) -> float:
    """What the first run of ``prepare(*arguments)`` adds to the peak of memory, in a process of its own.

    A small run goes before, so that libraries and kernels are loaded: ``prepare`` takes ``small`` by keyword.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (prepare, arguments)) / 2**20


def _peak(prepare: Callable[..., Run], arguments: tuple[Any, ...]) -> float:
    prepare(*arguments, small=True)()
    run = prepare(*arguments, small=False)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    before = _kilobytes("VmRSS")
    run()
    return 1024 * (_kilobytes("VmHWM") - before)


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{name}, {torch.get_num_threads()} threads"


def slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def write_csv(path: Path, rows: Sequence[Mapping[str, object]], common: Mapping[str, object]) -> None:
    """``rows`` with the columns that all of them share."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], *common], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **common} for row in rows)


def versions() -> dict[str, str]:
    return {"torch": torch.__version__, "triton": _triton_version()}


def _triton_version() -> str:
    if importlib.util.find_spec("triton") is None:
        return "absent"
    import triton

    return triton.__version__

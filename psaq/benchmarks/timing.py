"""Variants of one thing, timed in turns."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from psaq.progress import progress_bar

Run = Callable[[], object]


def medians(
    runs: Mapping[str, Run], repeats: int, description: str, before: Callable[[Run], None] | None = None
) -> dict[str, float]:
    """Seconds that each run takes: one round warms up, then each round times every run once, after what is done
    ``before`` it."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    with progress_bar(description=description, total=(repeats + 1) * len(runs), unit="run") as bar:
        for repeat in range(repeats + 1):
            for name, run in runs.items():
                if before is not None and repeat:
                    before(run)
                seconds = _timed(run)
                if repeat:
                    taken[name].append(seconds)
                bar.update()
    return {name: statistics.median(times) for name, times in taken.items()}


def _timed(run: Run) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started

"""Stages that share a time: each in a process of its own, ended at its budget, started again where a crash cost little.

What a stage does not spend is for those after it.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import findings  # type: ignore[import-not-found]

MOST_STARTS = 4  # of a stage that crashes: each costs it one measurement
LEAST_SECONDS = 5.0  # that are worth starting a stage for
DONE, AT_BUDGET, SKIPPED = "done", "ended at its budget", "skipped, no time left"


@dataclass(frozen=True)
class Stage:
    """One stage: a command, and how much of the time it gets."""

    name: str
    weight: float
    command: Sequence[str]
    found: Path
    """Where the command writes what it finds."""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """How a stage ended."""

    stage: str
    verdict: str
    seconds: float
    budget: float
    findings: int = 0
    refused: int = 0


def budget(stages: Sequence[Stage], seconds_left: float) -> float:
    """The first stage's share of the time left."""
    return seconds_left * stages[0].weight / sum(stage.weight for stage in stages)


def run(
    stages: Sequence[Stage], seconds: float, logs: Path, cwd: Path, after: Callable[[list[Ended]], None]
) -> list[Ended]:
    """Run the stages one after the other within ``seconds``; ``after`` each, hand over how all so far ended."""
    deadline, ended = time.monotonic() + seconds, list[Ended]()
    for first in range(len(stages)):
        share = budget(stages[first:], deadline - time.monotonic())
        ended.append(run_stage(stages[first], share, logs, cwd))
        print(_line(ended[-1]), flush=True)
        after(ended)
    return ended


def run_stage(stage: Stage, seconds: float, logs: Path, cwd: Path) -> Ended:
    """Run one stage; after a crash that cost it one measurement, go on with the next."""
    started, verdict = time.monotonic(), SKIPPED
    for _ in range(MOST_STARTS):
        left = seconds - (time.monotonic() - started)
        if left < LEAST_SECONDS:
            break
        before = len(findings.read(stage.found))
        verdict = _run_once(stage, left, logs, cwd)
        if verdict in (DONE, AT_BUDGET) or len(findings.read(stage.found)) == before:
            break
    if verdict == AT_BUDGET:
        findings.forget_unfinished(stage.found)
    rows = findings.read(stage.found)
    refused = sum(findings.REFUSED in row for row in rows)
    spent = round(time.monotonic() - started, 1)
    return Ended(stage.name, verdict, spent, round(seconds, 1), len(rows) - refused, refused)


def _run_once(stage: Stage, seconds: float, logs: Path, cwd: Path) -> str:
    with (logs / f"{stage.name}.log").open("a", encoding="utf-8") as log:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **stage.environment}
        process: subprocess.Popen[Any] = subprocess.Popen(
            stage.command, cwd=cwd, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return AT_BUDGET
        finally:
            _end(process)
    if code == 0:
        return DONE
    return f"crashed: {signal.Signals(-code).name}" if code < 0 else f"failed with code {code}"


def _end(process: "subprocess.Popen[Any]") -> None:
    """End the process and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _line(ended: Ended) -> str:
    counts = f"{ended.findings} findings" + (f", {ended.refused} refused" if ended.refused else "")
    return f"{ended.stage:<12}{ended.seconds:>7.1f} s of {ended.budget:>6.1f} s  {ended.verdict}; {counts}"

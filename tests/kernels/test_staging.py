"""What a stage that hangs, crashes or raises costs: itself, and nothing that it or another one found."""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "kernels" / "benchmarks"
sys.path.append(str(BENCHMARKS))

import findings  # noqa: E402
import staging  # noqa: E402
from staging import AT_BUDGET, DONE, Ended, Stage  # noqa: E402

CASES = """
import os, signal, sys, time


def cases(end):
    for number in range(4):
        yield {"number": number}, lambda: measure(number, end)


def measure(number, end):
    if number == 2:
        if end == "raise":
            raise ValueError("no such number")
        if end == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if end == "hang":
            time.sleep(600)
    return {"square": number**2}
"""


@pytest.fixture
def stage(tmp_path: Path):
    """A stage of four cases, the third of which ends as is asked; and one whose command is given."""
    (tmp_path / "four_cases.py").write_text(CASES)
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(BENCHMARKS.parent)])}

    def made(name: str, *command: str) -> Stage:
        script = [str(BENCHMARKS / "findings.py"), "four_cases:cases", str(tmp_path / name), f'{{"end": "{name}"}}']
        return Stage(name, 1.0, [sys.executable, *(command or script)], tmp_path / name, environment)

    return made


def run(stages: list[Stage], seconds: float, folder: Path) -> dict[str, Ended]:
    handed: list[int] = []
    ended = staging.run(stages, seconds, folder, folder, lambda so_far: handed.append(len(so_far)))
    assert handed == list(range(1, len(stages) + 1))
    return {each.stage: each for each in ended}


def squares(path: Path) -> dict[int, object]:
    return {row["number"]: row.get("square", row.get(findings.REFUSED)) for row in findings.read(path)}


def test_what_raises_or_crashes_is_named_and_all_else_is_measured(stage, tmp_path: Path) -> None:
    broken = stage("broken", "-c", "raise SystemExit(7)")
    ended = run([stage("raise"), stage("crash"), broken, stage("fine")], 300, tmp_path)
    assert {name: each.verdict for name, each in ended.items()} == {
        "raise": DONE,
        "crash": DONE,  # at its second start
        "broken": "failed with code 7",
        "fine": DONE,
    }
    assert squares(tmp_path / "raise") == {0: 0, 1: 1, 2: "ValueError: no such number", 3: 9}
    assert squares(tmp_path / "crash") == {0: 0, 1: 1, 2: "its process died", 3: 9}
    assert squares(tmp_path / "fine") == {0: 0, 1: 1, 2: 4, 3: 9}
    assert (ended["crash"].findings, ended["crash"].refused) == (3, 1)
    assert "ValueError" in (tmp_path / "raise.log").read_text()


def test_a_stage_that_hangs_is_ended_at_its_budget_with_all_that_it_started(stage, tmp_path: Path) -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    started = time.monotonic()
    ended = run([stage("parent", "-c", child), replace(stage("hang"), weight=3.0)], 26, tmp_path)
    assert time.monotonic() - started < 120
    assert {each.verdict for each in ended.values()} == {AT_BUDGET}
    assert squares(tmp_path / "hang") == {0: 0, 1: 1}  # the third is free to be measured another time
    findings.collect([({"number": 2}, lambda: {"square": 4})], tmp_path / "hang")
    assert squares(tmp_path / "hang")[2] == 4


def test_a_measurement_that_hangs_ends_its_process(tmp_path: Path, stage) -> None:
    hanging = stage("hang")
    shorter = (
        f"import findings; findings.CASE_SECONDS = 1; import sys; sys.argv = {hanging.command[1:]!r}; findings.main()"
    )
    environment = {"PYTHONPATH": hanging.environment["PYTHONPATH"] + os.pathsep + str(BENCHMARKS)}
    ended = staging.run_stage(
        Stage("hang", 1.0, [sys.executable, "-c", shorter], hanging.found, environment), 120, tmp_path, tmp_path
    )
    assert ended.verdict == DONE
    assert squares(hanging.found) == {0: 0, 1: 1, 2: "its process died", 3: 9}
    assert "measure" in (tmp_path / "hang.log").read_text()  # where it hung


def test_what_a_stage_leaves_is_shared_by_those_after_it(tmp_path: Path) -> None:
    stages = [Stage(name, weight, [], tmp_path) for name, weight in (("a", 1), ("b", 2), ("c", 1))]
    assert staging.budget(stages, 100) == 25
    assert staging.budget(stages[1:], 99) == 66
    assert staging.budget(stages[2:], 80) == 80


def test_no_time_left_is_said(stage, tmp_path: Path) -> None:
    assert run([stage("fine")], 1, tmp_path)["fine"].verdict == staging.SKIPPED
    assert not (tmp_path / "fine").exists()


def test_what_came_to_nothing_can_be_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "found"
    findings.collect([({"number": 1}, lambda: {"square": 1}), ({"number": 2}, lambda: {"square": 1 // 0})], path)
    findings.write(path, {"number": 3}, None)
    assert set(squares(path)) == {1, 2, 3}
    findings.forget_refused(path)
    assert squares(path) == {1: 1}


def test_a_line_that_a_crash_cut_off_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "found"
    findings.collect([({"number": 1}, lambda: {"square": 1})], path)
    path.write_text(path.read_text() + '{"case": {"number": 2}, "fou')
    path.write_text(path.read_text() + "\n")
    findings.collect([({"number": number}, lambda: {"square": 4}) for number in (1, 2)], path)
    assert squares(path) == {1: 1, 2: 4}

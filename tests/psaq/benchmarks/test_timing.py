"""Rounds in turns, the first of which is not counted."""

from types import SimpleNamespace

import pytest

from psaq.benchmarks.timing import medians


def test_medians_leave_the_warm_up_out() -> None:
    calls: list[str] = []
    seconds = medians({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, "test")
    assert calls == ["a", "b"] * 4
    assert seconds.keys() == {"a", "b"}
    assert all(taken > 0 for taken in seconds.values())


def test_what_is_done_before_a_run_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr("psaq.benchmarks.timing.time", SimpleNamespace(perf_counter=lambda: float(len(calls))))
    seconds = medians({"a": lambda: calls.append("a")}, 2, "test", before=lambda run: (run(), run()))
    assert calls == ["a"] + ["a", "a", "a"] * 2
    assert seconds == {"a": 1.0}, "a call is a second"

"""Rounds in turns, the first of which is not counted."""

from psaq.benchmarks.timing import medians


def test_medians_leave_the_warm_up_out() -> None:
    calls: list[str] = []
    seconds = medians({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, "test")
    assert calls == ["a", "b"] * 4
    assert seconds.keys() == {"a", "b"}
    assert all(taken > 0 for taken in seconds.values())

"""Settings: what of an earlier version's record agrees with the settings of now."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psaq.settings import as_json, difference


@dataclass(frozen=True)
class _Synthesis:
    steps: int = 25
    start: str | None = None
    frames: tuple[int, ...] = (0, 25)

    earlier_defaults: ClassVar[dict[str, tuple[Any, ...]]] = {"start": ("natural",)}


@dataclass(frozen=True)
class _Run:
    model: str
    out: Path | None = Path("runs")
    synthesis: _Synthesis = field(default_factory=_Synthesis)


def _runs(*starts: str | None) -> st.SearchStrategy[_Run]:
    synthesis = st.builds(_Synthesis, st.integers(24, 26), st.sampled_from(starts), st.sampled_from([(0, 25), (3,)]))
    return st.builds(_Run, st.sampled_from(["a", "b"]), st.just(Path("runs")), synthesis)


@given(_runs(None, "natural", "leaves"))
def test_settings_agree_with_their_own_record(run):
    assert difference(as_json(run), run) == ""
    assert difference(as_json({"run": run}), {"run": run}) == ""


@given(_runs(None, "leaves"), _runs(None, "leaves"))
def test_a_whole_record_agrees_with_its_own_settings_alone(recorded, now):
    assert (difference(as_json(recorded), now) == "") == (recorded == now)


def test_an_option_that_came_later_agrees_at_its_default_alone():
    record = {"model": "a", "out": "runs", "synthesis": {"steps": 25, "start": None}}
    assert difference(record, _Run("a")) == ""
    other = _Run("a", synthesis=_Synthesis(frames=(3,)))
    assert difference(record, other) == "synthesis.frames None, not [3]"


def test_a_group_of_options_that_came_later_agrees_at_its_defaults():
    assert difference({"model": "a"}, _Run("a")) == ""
    assert "synthesis.steps" in difference({"model": "a"}, _Run("a", synthesis=_Synthesis(steps=7)))


@pytest.mark.parametrize(("recorded", "now"), [("leaves", None), ("natural", "leaves"), (None, "natural")])
def test_a_choice_is_another_setting(recorded, now):
    record = as_json(_Run("a", synthesis=_Synthesis(start=recorded)))
    assert f"synthesis.start {recorded!r}, not {now!r}" in difference(
        record, _Run("a", synthesis=_Synthesis(start=now))
    )


def test_the_default_of_an_earlier_version_agrees_with_todays():
    record = as_json(_Run("a", synthesis=_Synthesis(start="natural")))
    assert difference(record, _Run("a")) == ""


def test_an_option_that_there_is_no_more_is_named():
    assert difference({**as_json(_Run("a")), "gone": 3}, _Run("a")) == "gone 3, not None"


def test_none_that_was_chosen_is_no_default():
    assert difference({"model": "a"}, _Run("a", out=None)) == "out None, not None"


def test_an_option_without_default_is_named_where_the_record_lacks_it():
    assert difference({}, _Run("a")) == "model None, not 'a'"

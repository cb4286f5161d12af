"""Run folders: what is recorded, and that another run never overwrites it."""

import itertools
import json
import time
from dataclasses import asdict

import pytest

from psaq.commands.options import ModelOptions
from psaq.errors import PsaqError
from psaq.runs import RUN_FILE, RunFolder, check_files, read_run
from psaq.synthesis import SynthesisConfig


def _record(folder):
    return json.loads((folder / RUN_FILE).read_text())


def test_a_run_records_what_repeats_it(tmp_path):
    run = RunFolder(tmp_path / "run", "synthesize", SynthesisConfig(steps=7), seed=3)
    with run.timed("optimising"):
        pass
    run.finish({"loss": 1.5})
    record = _record(tmp_path / "run")
    assert record["command"] == "synthesize"
    assert record["config"]["steps"] == 7
    assert record["seed"] == 3
    assert {"torch", "timm", "psaq", "python"} <= record["versions"].keys()
    assert record["results"] == {"loss": 1.5}
    assert {"optimising", "total"} <= record["timings"].keys()


def test_the_same_run_may_start_again_and_keeps_its_results(tmp_path):
    RunFolder(tmp_path, "synthesize", {"a": 1}, seed=0).finish({"loss": 1.5})
    RunFolder(tmp_path, "synthesize", {"a": 1}, seed=0)
    assert _record(tmp_path)["results"] == {"loss": 1.5}


def test_results_keep_the_versions_the_device_and_the_time_that_made_them(tmp_path, monkeypatch):
    with RunFolder(tmp_path, "synthesize", {}).timed("optimising"):
        pass
    first = RunFolder(tmp_path, "synthesize", {})
    with first.timed("optimising"):
        time.sleep(0.05)
    first.finish({"loss": (1.5, float("nan"))})
    made = _record(tmp_path)
    monkeypatch.setattr("psaq.runs.versions", lambda: {"psaq": "9.9"})
    monkeypatch.setattr("psaq.runs.device_name", lambda _: "another machine")
    again = RunFolder(tmp_path, "synthesize", {})
    assert _record(tmp_path) == made
    with again.timed("optimising"):
        pass
    again.finish({"loss": [1.5, float("nan")]})
    assert _record(tmp_path) == made
    again.finish({"loss": 1.25})
    assert _record(tmp_path)["versions"] == {"psaq": "9.9"}
    assert _record(tmp_path)["device"] == "another machine"


def test_the_timings_of_a_run_that_goes_on_add_up(tmp_path):
    for _ in range(2):
        run, stopped = RunFolder(tmp_path, "synthesize", {}), pytest.raises(KeyboardInterrupt)
        with stopped, run.timed("optimising"):
            time.sleep(0.05)
            raise KeyboardInterrupt
        del run
    RunFolder(tmp_path, "synthesize", {}).finish({"loss": 1.5})
    timings = _record(tmp_path)["timings"]
    assert 0.1 <= timings["optimising"] <= timings["total"]


def test_the_device_is_the_one_that_computes(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "a GPU")
    RunFolder(tmp_path / "cpu", "quantize", {}, device="cpu")
    RunFolder(tmp_path / "gpu", "quantize", {}, device="cuda")
    assert "threads" in _record(tmp_path / "cpu")["device"]
    assert _record(tmp_path / "gpu")["device"] == "a GPU"


@pytest.mark.parametrize(
    ("command", "config", "seed", "message"),
    [
        ("quantize", {"a": 1}, 0, "another command"),
        ("synthesize", {"a": 2}, 0, "another config .a 1, not 2"),
        ("synthesize", {"a": 1}, 1, "another seed"),
    ],
)
def test_another_run_is_refused_and_the_first_stays(tmp_path, command, config, seed, message):
    RunFolder(tmp_path, "synthesize", {"a": 1}, seed=0).finish({"loss": 1.5})
    with pytest.raises(PsaqError, match=message):
        RunFolder(tmp_path, command, config, seed=seed)
    assert _record(tmp_path)["results"] == {"loss": 1.5}


def test_a_run_of_version_0_1_is_continued(tmp_path):
    """Its record lacks what came later, and has the defaults of then."""
    config = {"model": asdict(ModelOptions()), "synthesis": asdict(SynthesisConfig(start="natural", class_weight=1.0))}
    for group, later in {"model": ["mean", "std"], "synthesis": ["resolutions", "noise", "variation"]}.items():
        for name in later:
            del config[group][name]
    RunFolder(tmp_path, "synthesize", config, seed=0).finish({"loss": 1.5})
    now = {"model": ModelOptions(), "synthesis": SynthesisConfig()}
    with pytest.raises(PsaqError, match=r"synthesis\.variation None, not 0\.3"):
        RunFolder(tmp_path, "synthesize", {**now, "synthesis": SynthesisConfig(variation=0.3)}, seed=0)
    RunFolder(tmp_path, "synthesize", now, seed=0)
    assert _record(tmp_path)["results"] == {"loss": 1.5}


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / RUN_FILE).write_text("{")
    with pytest.raises(PsaqError, match=RUN_FILE):
        RunFolder(tmp_path, "synthesize", {}, seed=0)


def test_a_record_that_was_changed_is_named(tmp_path):
    RunFolder(tmp_path, "synthesize", {"a": 1}, seed=0).finish({"loss": 1.5})
    text = (tmp_path / RUN_FILE).read_text()
    (tmp_path / RUN_FILE).write_text(text.replace("1.5", "2.5"))
    with pytest.raises(PsaqError, match=r"run\.json: is not as it was written"):
        RunFolder(tmp_path, "synthesize", {"a": 1}, seed=0)


def test_a_record_from_before_digests_is_continued(tmp_path):
    RunFolder(tmp_path, "synthesize", {"a": 1}, seed=0).finish({"loss": 1.5})
    record = _record(tmp_path)
    del record["sha256"], record["files"]
    (tmp_path / RUN_FILE).write_text(json.dumps(record))
    RunFolder(tmp_path, "synthesize", {"a": 1}, seed=0)
    assert read_run(tmp_path)["results"] == {"loss": 1.5}


@pytest.mark.parametrize(
    ("part", "value"),
    [
        *itertools.product(["command", "config", "seed", "versions", "device", "timings", "results"], [..., [1], True]),
        ("versions", {"torch": 2}),
        ("timings", {"total": float("inf")}),
    ],
)
def test_a_record_with_a_wrong_part_is_refused(tmp_path, part, value):
    RunFolder(tmp_path, "synthesize", {"a": 1}, seed=0)
    record = {name: content for name, content in _record(tmp_path).items() if name != "sha256"}
    if value is ...:
        del record[part]
    else:
        record[part] = value
    (tmp_path / RUN_FILE).write_text(json.dumps(record))
    with pytest.raises(PsaqError, match=rf"no run's record \({part}"):
        read_run(tmp_path)


def test_the_tables_of_a_finished_run_are_watched(tmp_path):
    run = RunFolder(tmp_path, "table1", {})
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    run.finish({"figure": float("nan")})
    assert read_run(tmp_path)["results"] == {"figure": None}
    check_files(tmp_path, read_run(tmp_path))
    (tmp_path / "table.csv").write_text("a,b\n1,3\n")
    with pytest.raises(PsaqError, match=r"table\.csv: is not as the run wrote it"):
        check_files(tmp_path, read_run(tmp_path))

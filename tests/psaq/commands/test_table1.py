"""``psaq table1``: every cell as `evaluate` measures it, resumed after any end, the same from two ranks as from one."""

import json
import shutil
import signal
import sys
from dataclasses import replace

import pytest
import torch
from launch import TORCHRUN, rank_of, start, wait_for
from noise_picture import noise_picture

from psaq.commands.table1 import Table1
from psaq.commands.work.table1 import synthesis_config
from psaq.errors import PsaqError
from psaq.evaluation import evaluate
from psaq.files import read_record, write_record
from psaq.images.batches import gaussian_images
from psaq.images.held_out import HELD_OUT_SEED
from psaq.images.scenes import SceneDataset
from psaq.images.synthetic import load_images
from psaq.models.zoo import load_model
from psaq.program import run_command
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe
from psaq.synthesis import SynthesisConfig
from psaq.tables.bench import Bench

OPTIONS = {
    "models": ["micro_vit"],
    "recipes": ["paper"],
    "bits": ["W4A8"],
    "seeds": [0, 1],
    "images": 100,
    "steps": 5,
    "num-images": 4,
    "device": "cpu",
}
CELLS = 1 + 2 + 2


def arguments(out, **changed):
    options = {**OPTIONS, **changed, "out": out}
    words = ([value] if not isinstance(value, list) else value for value in options.values())
    return [str(word) for name, values in zip(options, words, strict=True) for word in (f"--{name}", *values)]


def table1(out, **changed):
    run_command(Table1, arguments(out, **changed), prog="psaq table1")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    table1(out)
    return out


def same_run(one, other):
    assert (one / "table.csv").read_text() == (other / "table.csv").read_text()
    for seed in OPTIONS["seeds"]:
        images, others = (load_images(folder / f"micro_vit-seed{seed}").images for folder in (one, other))
        assert torch.equal(images, others)


def finished_cells(out):
    """All that is there; fails on a cell that is not whole."""
    return [json.loads(file.read_text())["cell"] for file in (out / "cells").glob("*.json")]


def test_every_cell_is_measured_as_evaluate_does(whole):
    model = load_model("micro_vit")
    scenes = SceneDataset(100, HELD_OUT_SEED, model)
    synthesised = load_images(whole / "micro_vit-seed1")
    assert synthesised.provenance["config"]["seed"] == 1
    lines = (whole / "table.csv").read_text().splitlines()
    assert len(lines) == 1 + CELLS
    for method, images in (("Gaussian", gaussian_images(model, 4, 1)), ("PSAQ", synthesised)):
        expected = evaluate(quantize(model, images, Recipe.paper(4, 8)), scenes, model, batch_size=50)
        (line,) = (line for line in lines if line.startswith(f"micro_vit,paper,W4A8,{method},1,"))
        found = dict(zip(lines[0].split(","), line.split(","), strict=True))
        assert (float(found["top1"]), float(found["agreement"])) == (expected.top1, expected.agreement)
        assert float(found["logit_sqnr"]) == pytest.approx(expected.logit_sqnr, abs=1e-3)


def test_the_run_is_recorded_and_reported(whole):
    record = json.loads((whole / "run.json").read_text())
    standard, gaussian, psaq = record["results"]["table"]
    assert [row["method"] for row in (standard, gaussian, psaq)] == ["Standard", "Gaussian", "PSAQ"]
    assert gaussian["seeds"] == psaq["seeds"] == 2
    assert standard["top1_std"] is None
    page = (whole / "report.html").read_text()
    assert f"{gaussian['top1']:.2f} ± {gaussian['top1_std']:.2f}</td>" in page
    for title in ("Accuracy", "Synthesised images: micro_vit-seed0", "Patch-similarity density: micro_vit-seed0"):
        assert f'alt="{title}. ' in page
    assert "Made by `psaq" in (whole / "table.md").read_text()


def test_a_finished_run_measures_nothing_again(whole, monkeypatch, capsys):
    monkeypatch.setattr(Bench, "measure", None)
    before = (whole / "table.csv").read_text()
    table1(whole)
    assert (whole / "table.csv").read_text() == before
    assert "micro_vit" in capsys.readouterr().out


def test_figures_that_a_kill_left_out_are_drawn(whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "run")
    figures = [tmp_path / "run" / "micro_vit-seed0" / name for name in ("density.png", "density.json")]
    for figure in figures:
        figure.unlink()
    monkeypatch.setattr(Bench, "measure", None)
    table1(tmp_path / "run")
    assert all(figure.exists() for figure in figures)


def test_more_of_the_same_is_added(whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "run")
    measured, measure = [], Bench.measure
    monkeypatch.setattr(Bench, "measure", lambda bench, cell: measured.append(cell) or measure(bench, cell))
    table1(tmp_path / "run", bits=["W4A8", "W8A8"], methods=["Standard", "Gaussian"])
    assert {cell.precision for cell in measured} == {"W8A8"}
    assert len(measured) == 3


def test_another_configuration_is_refused(whole, capsys):
    with pytest.raises(SystemExit):
        table1(whole, images=50)
    assert "images 100, not 50" in capsys.readouterr().err


def test_cells_of_other_weights_are_refused(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    file = next((tmp_path / "run" / "cells").glob("*PSAQ-seed0*"))
    write_record(file, {**read_record(file), "weights": "others"})
    next((tmp_path / "run" / "cells").glob("*PSAQ-seed1*")).unlink()
    with pytest.raises(SystemExit):
        table1(tmp_path / "run")
    assert "other weights of micro_vit" in capsys.readouterr().err


def test_images_synthesised_before_serve_again(whole, tmp_path, capsys):
    pattern = str(whole / "{model}-seed{seed}")
    table1(tmp_path / "run", synthesized=pattern)
    assert (tmp_path / "run" / "table.csv").read_text() == (whole / "table.csv").read_text()
    assert not (tmp_path / "run" / "micro_vit-seed0" / "images.safetensors").exists()
    for changed, message in (
        ({"steps": 6}, "another steps"),
        ({"seeds": [7]}, "micro_vit-seed7"),
        ({"synthesized": str(whole / "micro_vit-seed0")}, "another seed"),
        ({"models": ["micro_swin"], "synthesized": str(whole / "micro_vit-seed{seed}")}, "synthesised from micro_vit"),
    ):
        with pytest.raises(SystemExit):
            table1(tmp_path / str(len(message)), **{"synthesized": pattern, "methods": ["PSAQ"], **changed})
        assert message in capsys.readouterr().err


def test_a_model_that_cannot_be_had_is_reported_and_the_others_go_on(tmp_path, vit, capsys):
    for index in range(10):
        (tmp_path / "images" / f"class{index}").mkdir(parents=True)
        noise_picture((40, 40), 50).save(tmp_path / "images" / f"class{index}" / "0.png")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "deit_tiny.safetensors").write_bytes(b"damaged")
    options = {
        "imagenet": tmp_path / "images",
        "calibration": tmp_path / "images",
        "weights-dir": tmp_path / "weights",
        "methods": ["Standard", "Gaussian"],
    }
    table1(tmp_path / "run", models=["deit_tiny", "micro_vit"], **options)
    text = (tmp_path / "run" / "table.md").read_text()
    assert "deit_tiny: skipped: " in text
    assert "deit_tiny.safetensors: is truncated" in text
    assert "| micro_vit |" in text
    assert "skipped deit_tiny" in (tmp_path / "run" / "report.html").read_text()
    with pytest.raises(SystemExit):
        table1(tmp_path / "none", models=["deit_tiny"], **options)
    assert "no model could be had" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"models": ("resnet",)}, "resnet"),
        ({"models": ("deit_tiny",)}, "--imagenet"),
        ({"models": ()}, "models"),
        ({"recipes": ("magic",)}, "recipe 'magic'"),
        ({"bits": ("W4",)}, "'W4'"),
        ({"bits": ("W9A8",)}, "weights"),
        ({"seeds": (0, -1)}, "seeds -1: must be at least 0"),
        ({"images": 0}, "images 0: must be at least 1"),
        ({"workers": -1}, "workers -1"),
        ({"calibration_crop_pct": 2.0}, "crop_pct 2.0"),
        ({"num_images": 0}, "num_images 0"),
        ({"steps": 0}, "steps 0"),
    ],
)
def test_wrong_options_are_named_before_any_work(changed, message, tmp_path):
    command = replace(Table1(models=("micro_vit",), out=tmp_path / "run"), **changed)
    with pytest.raises(PsaqError) as raised:
        command.run()
    assert message in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_the_preset_sets_the_schedule_and_steps_still_hold():
    assert synthesis_config(Table1(preset="paper")) == SynthesisConfig.paper()
    assert synthesis_config(Table1(preset="faithful", steps=3)) == SynthesisConfig.paper(faithful=True, steps=3)
    assert synthesis_config(Table1()) == SynthesisConfig()


def test_a_killed_run_goes_on_to_the_same_table(whole, tmp_path):
    process = start([sys.executable, "-m", "psaq", "table1", *arguments(tmp_path / "run")], tmp_path / "log")
    wait_for(tmp_path / "run", "cells/*.json", process, tmp_path / "log")
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert 1 <= len(finished_cells(tmp_path / "run")) < CELLS
    table1(tmp_path / "run")
    same_run(tmp_path / "run", whole)


@pytest.mark.repeat
def test_two_ranks_make_the_table_of_one(whole, tmp_path):
    process = start([*TORCHRUN, "-m", "psaq", "table1", *arguments(tmp_path / "run")], tmp_path / "log")
    assert process.wait(timeout=240) == 0, (tmp_path / "log").read_text()
    same_run(tmp_path / "run", whole)
    assert (tmp_path / "log").read_text().count("Top-1 in %") == 1, "one rank speaks for all"


def test_a_lost_rank_ends_the_run_and_costs_no_finished_cell(whole, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    process = start([*TORCHRUN, "-m", "psaq", "table1", *arguments(out)], log)
    wait_for(out, "cells/*.json", process, log)
    rank_of(process, 1).kill()
    assert process.wait(timeout=120) != 0
    assert "psaq: error: rank 0 of 2" in log.read_text()
    assert "the same command goes on from there" in log.read_text()
    assert 1 <= len(finished_cells(out)) < CELLS
    before = {file: file.stat().st_mtime_ns for file in (out / "cells").iterdir()}
    table1(out)
    same_run(out, whole)
    assert all(file.stat().st_mtime_ns == time for file, time in before.items()), "finished cells stay as they are"

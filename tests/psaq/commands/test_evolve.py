"""``psaq evolve``: a folder with the model, the images and what came of every round; its page shows them."""

import csv
import json
from dataclasses import replace

import pytest
import torch

import psaq
from psaq.commands.evolve import Evolve
from psaq.commands.options import ModelOptions
from psaq.errors import PsaqError
from psaq.evolution import EvolutionConfig
from psaq.reports import write_report

QUICK = EvolutionConfig(rounds=2, num_images=4, image_steps=2, kept_aside=4, steps=2, batch_size=4)


@pytest.fixture(autouse=True)
def small_model(monkeypatch, vit):
    monkeypatch.setattr(ModelOptions, "load", lambda _: vit)


def test_the_folder_tells_what_came_of_every_round(vit, tmp_path, capsys):
    command = Evolve(precision="W4A6", recipe="paper", evolution=QUICK, out=tmp_path / "run")
    command.run()
    captured, folder = capsys.readouterr(), tmp_path / "run"
    said = captured.out
    (last,) = [line for line in captured.err.splitlines() if line.startswith("psaq: round 2:")]
    assert all(word in last for word in (" dB", "disagreement", "agreement", "new images' loss", "student's loss"))
    qmodel, images = psaq.evolve(vit, psaq.Recipe.paper(4, 6), QUICK)
    stored = psaq.load(folder / "model.safetensors", vit)
    assert torch.equal(stored(images.images), qmodel(images.images))
    assert torch.equal(psaq.load_images(folder).images, images.images)
    with (folder / "rounds.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["disagreement"]) for row in rows] == pytest.approx(
        [each["disagreement"] for each in images.provenance["rounds"]], abs=1e-4
    )
    results = json.loads((folder / "run.json").read_text())["results"]
    assert results["best_round"] == images.provenance["best_round"]
    assert f"round {results['best_round']} of 2" in said
    page = (folder / "report.html").read_text()
    for title in ("Round by round", "New images by round", "Patch-similarity density"):
        assert title in page
    command.run()  # again: nothing is left to do
    assert torch.equal(psaq.load_images(folder).images, images.images)


def test_asked_for_more_rounds_it_goes_on(tmp_path):
    for rounds in (1, 2):
        Evolve(recipe="paper", evolution=replace(QUICK, rounds=rounds), out=tmp_path / "run").run()
        assert len((tmp_path / "run" / "rounds.csv").read_text().splitlines()) == 2 + rounds
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"]["evolution"]["rounds"] == 2
    for other, refused in ({"steps": 1}, "another config"), ({"rounds": 1}, "has 2 rounds, more than 1"):
        with pytest.raises(PsaqError, match=refused):
            Evolve(recipe="paper", evolution=replace(QUICK, **other), out=tmp_path / "run").run()
        assert json.loads((tmp_path / "run" / "run.json").read_text()) == record


def test_a_damaged_table_of_rounds_is_named(vit, tmp_path):
    Evolve(recipe="paper", evolution=QUICK, out=tmp_path / "run").run()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "rounds.csv" in record["files"]
    (tmp_path / "run" / "rounds.csv").write_text("number\n0\n")
    with pytest.raises(PsaqError, match=r"rounds\.csv"):
        write_report(tmp_path / "run")


def test_an_override_that_fits_nothing_makes_no_folder(tmp_path):
    with pytest.raises(PsaqError, match="fits no layer"):
        Evolve(override=("blocks.9.*=W8A8",), evolution=QUICK, out=tmp_path / "run").run()
    assert not (tmp_path / "run").exists()

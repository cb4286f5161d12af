"""``psaq evolve``: a folder with the model, the images and what came of every round; its page shows them."""

import csv
import json
from dataclasses import replace

import pytest
import torch
from noise_picture import noise_picture

import psaq
from psaq.commands.evolve import Evolve
from psaq.commands.options import ModelOptions
from psaq.errors import PsaqError
from psaq.evolution import EvolutionConfig
from psaq.images.pictures import load_pictures
from psaq.images.preprocessing import read_image
from psaq.images.synthetic import SyntheticImages
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


@pytest.mark.parametrize("synthesised", [False, True])
def test_of_more_images_than_the_pool_holds_as_many_are_taken_evenly(vit, tmp_path, monkeypatch, synthesised):
    for index in range(6):
        noise_picture((32, 32), 60 + index).save(tmp_path / f"{index}.png")
    pictures, place = load_pictures(tmp_path, vit), tmp_path
    if synthesised:
        place = tmp_path / "made"
        SyntheticImages(pictures, torch.zeros(6, dtype=torch.int64), (0.5,) * 3, (0.5,) * 3).save(place)
    read, given = [], []
    monkeypatch.setattr(
        "psaq.images.pictures.read_image", lambda path, name: read.append(path.name) or read_image(path, name)
    )
    monkeypatch.setattr("psaq.commands.work.evolve.evolve", lambda *_, images, **__: given.append(images) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Evolve(images=place, evolution=replace(QUICK, pool=3), out=tmp_path / "run").run()
    assert read == ([] if synthesised else ["0.png", "2.png", "4.png"])
    torch.testing.assert_close(given[0], pictures[::2])


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

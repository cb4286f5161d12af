"""``python -m psaq.plot_density``: any subset of sources, files whole or absent, errors that name the input."""

import json

import pytest
import torch
from noise_picture import noise_picture
from PIL import Image

from psaq.commands.options import ModelOptions
from psaq.commands.outputs import FigureOptions
from psaq.commands.plot_similarity import PlotSimilarity
from psaq.errors import PsaqError
from psaq.images.synthetic import SyntheticImages
from psaq.plot_density import PlotDensity


@pytest.fixture(autouse=True)
def small_model(monkeypatch, vit):
    monkeypatch.setattr(ModelOptions, "load", lambda _: vit)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos" / "inner"
    folder.mkdir(parents=True)
    for index in range(3):
        noise_picture((50, 40), 60 + index).save(folder / f"{index}.png")
    return tmp_path / "photos"


def numbers(path):
    return json.loads(path.read_text())["sources"]


def test_all_three_sources_at_once(photos, tmp_path, capsys):
    out, csv, numbers_file = tmp_path / "fig3.png", tmp_path / "fig3.csv", tmp_path / "fig3.json"
    command = PlotDensity(
        noise=True,
        real=(photos,),
        synthesize=True,
        images=2,
        steps=3,
        figure=FigureOptions(out),
        csv=csv,
        json=numbers_file,
    )
    command.run()
    assert {source: found["images"] for source, found in numbers(numbers_file).items()} == {
        "noise": 2,
        "real": 2,
        "generated": 2,
    }
    printed = capsys.readouterr().out
    assert printed.split()[-3:] == [str(out), str(csv), str(numbers_file)]
    for source, found in numbers(numbers_file).items():
        assert f"{source}: {found['verdict']}" in printed
    with Image.open(out) as picture:
        assert picture.width == 1020


def test_a_run_of_synthesize_is_read_and_normalised_anew(tmp_path, vit, capsys):
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    run = SyntheticImages(images, torch.zeros(3, dtype=torch.long), (0.0,) * 3, (1.0,) * 3)
    run.save(tmp_path / "run")
    same = SyntheticImages((images - 0.5) / 0.5, torch.zeros(3, dtype=torch.long), (0.5,) * 3, (0.5,) * 3)
    same.save(tmp_path / "same")
    for name in ("run", "same"):
        out = tmp_path / f"{name}.png"
        PlotDensity(generated=tmp_path / name, figure=FigureOptions(out), json=out.with_suffix(".json")).run()
    first, second = (numbers(tmp_path / f"{name}.json")["generated"] for name in ("run", "same"))
    assert first["entropy"] == pytest.approx(second["entropy"], rel=1e-4)
    assert first["images"] == 3


def test_same_seed_same_numbers(tmp_path):
    for name in ("first", "second"):
        PlotDensity(
            noise=True, images=2, seed=3, figure=FigureOptions(tmp_path / f"{name}.png"), json=tmp_path / f"{name}.json"
        ).run()
    assert (tmp_path / "first.json").read_bytes() == (tmp_path / "second.json").read_bytes()
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


def test_options_reach_the_measurement(tmp_path):
    options = {"layers": (2,), "bandwidth": 0.05, "grid": 100, "per_head": True}
    PlotDensity(
        noise=True, images=1, figure=FigureOptions(tmp_path / "a.svg", "dark"), json=tmp_path / "a.json", **options
    ).run()
    written = json.loads((tmp_path / "a.json").read_text())
    assert (written["bandwidth"], written["grid_points"]) == (0.05, 100)
    assert [layer["layer"] for layer in written["sources"]["noise"]["layers"]] == ["block 2"]
    assert "#14171c" in (tmp_path / "a.svg").read_text()


def corrupt(folder):
    (folder / "photos" / "inner" / "1.png").write_bytes(b"not a picture")


def empty(folder):
    for file in (folder / "photos" / "inner").iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (corrupt, {"images": 3}, "1.png: is not an image"),
        (empty, {"images": 1}, "holds no picture"),
        (lambda folder: None, {"images": 4}, "4 pictures: 3 were found"),
        (lambda folder: None, {"images": 1, "layers": (9,)}, "from 1 to 2"),
        (lambda folder: None, {"images": 1, "scenes": True}, "--real and --scenes"),
        (lambda folder: None, {"images": 1, "synthesize": True, "generated": "x"}, "--generated and --synthesize"),
        (lambda folder: None, {"images": 1, "generated": "nowhere"}, "no such file"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(photos, tmp_path, spoil, options, message):
    spoil(tmp_path)
    with pytest.raises(PsaqError, match=message):
        PlotDensity(
            real=(photos,), figure=FigureOptions(tmp_path / "fig3.png"), csv=tmp_path / "fig3.csv", **options
        ).run()
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@pytest.mark.parametrize("name", ["fig3.gif", "fig3", "file/fig3.png", "."])
def test_an_output_that_cannot_be_is_said_before_the_work(tmp_path, monkeypatch, name):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(ModelOptions, "load", lambda _: pytest.fail("loaded the model first"))
    with pytest.raises(PsaqError, match=str(tmp_path)):
        PlotDensity(noise=True, figure=FigureOptions(tmp_path / name)).run()


@pytest.mark.parametrize("wrong", [{"layers": (99,)}, {"grid": 10}, {"bandwidth": 1.0}])
def test_a_wrong_measurement_is_refused_before_images_are_synthesised(tmp_path, monkeypatch, wrong):
    monkeypatch.setattr("psaq.commands.work.plot_density.synthesize", lambda *_, **__: pytest.fail("synthesised first"))
    with pytest.raises(PsaqError, match=r"layers|grid|bandwidth"):
        PlotDensity(synthesize=True, figure=FigureOptions(tmp_path / "a.png"), **wrong).run()


def test_without_a_word_a_bundled_model_draws_all_three(tmp_path, monkeypatch):
    monkeypatch.undo()  # the bundled model itself
    options = ModelOptions(model="micro_swin")
    PlotDensity(options, images=3, steps=3, figure=FigureOptions(tmp_path / "a.png"), json=tmp_path / "a.json").run()
    assert list(numbers(tmp_path / "a.json")) == ["noise", "real", "generated"]
    layers = [layer["layer"] for layer in numbers(tmp_path / "a.json")["real"]["layers"]]
    assert layers[0] == "stage 1 · block 1"
    assert len(layers) == 6


@pytest.mark.parametrize("name", ["micro_segmenter", "micro_detector"])
def test_bundled_models_of_boxes_and_pixels_see_scenes(tmp_path, monkeypatch, name):
    monkeypatch.undo()
    PlotDensity(ModelOptions(name), scenes=True, images=2, figure=FigureOptions(tmp_path / "a.png")).run()
    PlotSimilarity(ModelOptions(name), index=1, figure=FigureOptions(tmp_path / "b.png")).run()
    assert (tmp_path / "a.png").exists()
    assert (tmp_path / "b.png").exists()


def test_any_other_model_is_told_how_to_name_its_images(tmp_path):
    options, figure = ModelOptions("deit_tiny"), FigureOptions(tmp_path / "a.png")
    with pytest.raises(PsaqError, match=r"not for deit_tiny; name pictures with --real"):
        PlotDensity(options, scenes=True, images=2, figure=figure).run()
    with pytest.raises(PsaqError, match=r"deit_tiny.*--image, --generated or --noise"):
        PlotSimilarity(options, figure=figure).run()


def test_a_model_that_is_not_bundled_has_no_scenes(tmp_path):
    options = ModelOptions(model="deit_tiny")
    PlotDensity(options, images=2, steps=2, figure=FigureOptions(tmp_path / "a.png"), json=tmp_path / "a.json").run()
    assert list(numbers(tmp_path / "a.json")) == ["noise", "generated"]

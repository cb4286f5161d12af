"""``psaq plot-samples`` and ``psaq plot-similarity``: the picture asked for, or an error that names the input."""

import pytest
import torch
from noise_picture import noise_picture
from PIL import Image

from psaq.commands.options import ModelOptions
from psaq.commands.outputs import FigureOptions
from psaq.commands.plot_samples import PlotSamples
from psaq.commands.plot_similarity import PlotSimilarity
from psaq.errors import PsaqError
from psaq.images.synthetic import SyntheticImages, load_images
from psaq.synthesis import SynthesisConfig, synthesize


@pytest.fixture(autouse=True)
def small_model(monkeypatch, vit):
    monkeypatch.setattr(ModelOptions, "load", lambda _: vit)


@pytest.fixture
def images(vit) -> SyntheticImages:
    return synthesize(vit, SynthesisConfig(num_images=4, steps=4, film_frames=3), progress=False)


@pytest.fixture
def run(images, tmp_path):
    images.save(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("options", [{}, {"film": True}, {"columns": 2}])
def test_command_writes_the_picture(run, tmp_path, capsys, options):
    out = tmp_path / "samples.png"
    PlotSamples(generated=run, figure=FigureOptions(out), **options).run()
    assert capsys.readouterr().out.strip() == str(out)
    with Image.open(out) as picture:
        picture.load()
        assert picture.width == 1020


def test_command_synthesises_where_no_run_is_named(tmp_path, monkeypatch, images):
    asked = []
    monkeypatch.setattr(
        "psaq.commands.work.plot_samples.synthesize", lambda model, config, progress: asked.append(config) or images
    )
    PlotSamples(images=2, seed=5, figure=FigureOptions(tmp_path / "samples.png")).run()
    assert [(config.num_images, config.seed) for config in asked] == [(2, 5)]
    assert (tmp_path / "samples.png").exists()


def test_an_unknown_class_is_refused_before_images_are_synthesised(tmp_path, monkeypatch):
    monkeypatch.setattr("psaq.commands.work.plot_samples.synthesize", lambda *_, **__: pytest.fail("synthesised first"))
    with pytest.raises(PsaqError, match="'wolf': is none of the model's"):
        PlotSamples(classes=("wolf",), figure=FigureOptions(tmp_path / "samples.png")).run()


def changed(run, **changes):
    images = load_images(run)
    fields = {name: getattr(images, name) for name in ("images", "labels", "mean", "std", "film", "provenance")}
    SyntheticImages(**{**fields, **changes}).save(run)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"labels": torch.tensor([0, 1, 2, 10])}, {}, "class 10, the model knows 10"),
        ({"images": torch.zeros(4, 3, 48, 48), "film": None}, {}, "48×48 pixels, the model takes 32×32"),
        ({"labels": torch.tensor([0, 1, 2, 3])}, {"classes": ("9",)}, "no image was synthesised"),
        ({}, {"classes": ("wolf",)}, "wolf"),
        ({"film": None}, {"film": True}, "no frames"),
        ({"provenance": {}}, {"film": True}, "do not say"),
        ({}, {"images": 0}, "--images 0"),
        ({}, {"columns": -1}, "--columns -1"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(run, tmp_path, changes, options, message):
    changed(run, **changes)
    with pytest.raises(PsaqError, match=message):
        PlotSamples(generated=run, figure=FigureOptions(tmp_path / "samples.png"), **options).run()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_similarity_of_each_kind_of_image(run, tmp_path):
    photo = tmp_path / "photo.png"
    noise_picture((40, 40), 60).save(photo)
    for name, options in {
        "photo": {"image": photo},
        "generated": {"generated": run, "index": 3},
        "noise": {"noise": True, "layers": (2,), "at": (0.1, 0.9)},
    }.items():
        PlotSimilarity(figure=FigureOptions(tmp_path / f"{name}.png"), **options).run()
        with Image.open(tmp_path / f"{name}.png") as picture:
            picture.load()
            assert picture.width == 1020


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": True, "image": "photo.png"}, "give one of them"),
        ({"image": "nowhere.png"}, "nowhere.png"),
        ({"generated": "run", "index": 4}, "holds 4 images"),
        ({"noise": True, "layers": (7,)}, "from 1 to 2"),
        ({"noise": True, "at": (1.5, 0.0)}, "shares"),
        ({}, "scenes"),
    ],
)
def test_similarity_names_bad_input_and_writes_nothing(run, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PsaqError, match=message):
        PlotSimilarity(figure=FigureOptions(tmp_path / "similarity.png"), **options).run()
    assert not (tmp_path / "similarity.png").exists()

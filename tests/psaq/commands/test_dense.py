"""Boxes and pixels from the command line: a model of one's own, quantised with no data, scored and drawn."""

import sys
from functools import partial

import pytest
from dense_makes import write_annotations, write_masks, write_models, write_pictures
from PIL import Image
from repeats import also

from psaq.cli import main
from psaq.commands.demo import Demo
from psaq.commands.evaluate import Evaluate
from psaq.commands.work import demo, evaluate
from psaq.errors import PsaqError
from psaq.images.held_out import held_out_scenes
from psaq.models.zoo import load_model
from psaq.quantization.recipes import Recipe
from psaq.runs import read_run
from psaq.synthesis import SynthesisConfig

TRUTHS = {"detector": ["--annotations", "boxes.json"], "segmenter": ["--masks", "masks"]}
TASKS = {"detector": "detection", "segmenter": "segmentation"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    pytest.importorskip("pycocotools")
    monkeypatch.chdir(tmp_path)
    write_models(tmp_path)
    write_pictures(tmp_path / "images")
    write_masks(tmp_path / "masks")
    write_annotations(tmp_path / "boxes.json")
    return tmp_path


@pytest.fixture
def psaq(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["psaq", *arguments])
        main()
        return capsys.readouterr()

    return run


@pytest.mark.parametrize("name", ["detector", "segmenter"])
def test_from_a_file_of_ones_own_to_scores_and_a_page(folder, psaq, name):
    model = ["--model", f"models.py:{name}"]
    quantize = [*model, "--recipe", "paper", "--images", "images", "--num-images", "2", "--out", "w8a8"]
    psaq("quantize", *quantize)
    evaluate = [*model, "--task", TASKS[name], "--images", "images", *TRUTHS[name], "--batch-size", "2"]
    said = psaq("evaluate", *evaluate, "--quantized", "w8a8", "--out", "scores").out.splitlines()
    assert said[0].startswith(f"models.py:{name}: ")
    assert "agreement" in said[1]
    results = read_run(folder / "scores")["results"]
    assert results["fp"]["agreement"] is None
    assert results["quantized"]["agreement"] > 50
    page = (folder / "scores" / "report.html").read_text(encoding="utf-8")
    assert "What both models find" in page
    assert "quantized.agreement" in page
    drawn = psaq("plot-predictions", *model, "--quantized", "w8a8", "--images", "images", "--pictures", "2")
    assert drawn.out.strip() == "predictions.png"
    with Image.open(folder / "predictions.png") as picture:
        assert min(picture.size) > 500
    alone = psaq("evaluate", *evaluate).out
    assert alone.strip() == said[0]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--model", "models.py:detector"], "is for detection; add --images DIR and --annotations FILE"),
        (["--model", "models.py:segmenter"], "is for segmentation; add --images DIR and --masks DIR"),
        (["--annotations", "boxes.json"], "--annotations: name the folder of the pictures, too"),
        (["--masks", "masks"], "--masks: name the folder of the pictures, too"),
        (["--images", "images", "--masks", "masks", "--annotations", "boxes.json"], "give one of them"),
        (["--images", "images", "--masks", "masks", "--task", "detection"], "--masks: is for segmentation"),
        (["--labels", "1"], "--labels: does nothing for what is measured here"),
        (["--ignore", "3"], "--ignore: does nothing"),
        (["--images", "images", "--masks", "masks", "--crop-pct", "0.5"], "--crop-pct: does nothing"),
        (["--crop-pct", "0.5"], "--crop-pct: does nothing"),
        (["--images", "images", "--scenes", "3"], "--scenes: does nothing"),
        (["--pictures", "-1"], "--pictures -1: must be at least 0"),
        (["--images", "images", "--masks", "masks"], "knows a MaskTruth of each picture, the model is for classif"),
        (
            ["--model", "micro_segmenter", "--images", "images", "--annotations", "boxes.json"],
            "knows a CocoTruth of each picture, the model is for segmentation; give what psaq.segmentation makes",
        ),
        (["--model", "micro_segmenter", "--scenes", "3", "--task", "classification"], "knows a MaskTruth"),
        (["--scenes", "3", "--task", "segmentation"], "knows a int of each picture"),
    ],
)
def test_options_that_do_not_go_together_are_said_before_the_work(folder, psaq, capsys, options, complaint):
    with pytest.raises(SystemExit) as ended:
        psaq("evaluate", *options)
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("model", [*also("micro_segmenter"), "micro_detector", "models.py:segmenter"])
def test_images_without_classes_are_synthesised_and_drawn(folder, psaq, model):
    psaq("synthesize", "--model", model, "--num-images", "2", "--steps", "2", "--out", "made")
    assert {path.name for path in (folder / "made").glob("*.png")} >= {"samples.png", "film.png"}
    assert (folder / "made" / "report.html").exists()
    drawn = psaq("plot-samples", "--model", model, "--generated", "made", "--out", "again.png").out
    assert drawn.strip() == "again.png"
    with pytest.raises(SystemExit):
        psaq("plot-samples", "--model", model, "--generated", "made", "--classes", "0", "--out", "again.png")
    psaq("quantize", "--model", model, "--images", "made", "--recipe", "paper", "--out", "quantised")


def test_features_are_compared_on_any_folder(folder, psaq):
    psaq("quantize", "--recipe", "paper", "--gaussian", "--num-images", "2", "--out", "classes")
    said = psaq("evaluate", "--task", "features", "--images", "images", "--quantized", "classes").out.splitlines()
    assert said[0] == "micro_vit: no classes and no reference (3 images)"
    assert said[1].startswith("classes: SQNR ")


def test_pictures_that_are_passed_over_stand_in_the_page(folder, psaq):
    Image.new("RGB", (60, 48)).save(folder / "images" / "3.gif")
    options = ["--model", "models.py:segmenter", "--images", "images", "--masks", "masks", "--out", "scores"]
    assert psaq("evaluate", *options).out.splitlines()[1] == "images: 1 passed over (.gif 1)"
    assert "1 passed over (.gif 1)" in (folder / "scores" / "report.html").read_text(encoding="utf-8")


def test_a_model_of_classes_has_no_predictions_to_draw(folder, psaq, capsys):
    psaq("quantize", "--recipe", "paper", "--gaussian", "--num-images", "2", "--out", "classes")
    with pytest.raises(SystemExit):
        psaq("plot-predictions", "--quantized", "classes", "--images", "images")
    assert "there are neither boxes nor pixels to draw" in capsys.readouterr().err


def test_the_normalisation_may_be_told(folder, psaq):
    common = ["evaluate", "--model", "models.py:segmenter", "--images", "images", "--masks", "masks"]
    usual = psaq(*common).out
    assert psaq(*common, "--mean", "0.9", "--std", "0.1").out != usual


@pytest.mark.parametrize("command", [evaluate, demo])
def test_what_is_drawn_is_whole_or_as_it_was(tmp_path, monkeypatch, command):
    def half(_figure, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "save_figure", half)
    model, drawn = load_model("micro_segmenter"), tmp_path / "micro_segmenter" / "predictions.png"
    drawn.parent.mkdir()
    drawn.write_bytes(b"whole")
    options = Demo(synthesis=SynthesisConfig(num_images=1, steps=1), scenes=1, out=tmp_path)
    scenes = held_out_scenes("micro_segmenter", 1, model)
    draw = {
        demo: partial(demo._dense_line, options, "micro_segmenter", Recipe.paper()),
        evaluate: partial(evaluate._draw, Evaluate(), drawn.parent, model, model, scenes),
    }
    with pytest.raises(PsaqError, match=r"predictions\.png: could not be written"):
        draw[command]()
    assert drawn.read_bytes() == b"whole"

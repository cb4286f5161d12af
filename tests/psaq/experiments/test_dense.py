"""The table of boxes and pixels: every cell as `evaluate` measures it, kept, and never measured twice."""

import csv
import re
from collections import defaultdict
from itertools import product
from pathlib import Path
from statistics import fmean

import pytest
from dense_makes import write_annotations, write_masks, write_models, write_pictures

from psaq.evaluation import evaluate
from psaq.experiments import dense
from psaq.experiments.dense import Bench, Dense, Result
from psaq.experiments.rows import read_rows
from psaq.images.pictures import load_pictures
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe

RESULTS = Path(dense.__file__).parent / "results" / "dense.csv"
PAGE = Path(__file__).parents[3] / "docs" / "dense.md"


@pytest.fixture
def options(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    pytest.importorskip("pycocotools")
    monkeypatch.setattr(dense, "IMAGES", 2)
    write_models(tmp_path)
    for part in ("train", "val"):
        write_pictures(tmp_path / "bccd" / part)
        write_pictures(tmp_path / "camvid" / part / "images")
        write_masks(tmp_path / "camvid" / part / "masks")
    write_annotations(tmp_path / "bccd" / "val.json")
    return Dense(
        tmp_path,
        recipes=("paper",),
        precisions=("W8A8",),
        seeds=(0,),
        runs=tmp_path / "runs",
        out=tmp_path / "dense.csv",
    )


def test_every_cell_is_measured_as_evaluate_does_and_once(options, monkeypatch, capsys):
    options.run()
    results = read_rows(options.out, Result)
    assert {(each.model, each.method) for each in results} == {
        (model, method) for model in ("detector", "segmenter") for method in ("PSAQ", "Standard", "Gaussian")
    }
    bench = Bench("segmenter", options)
    images = load_pictures(options.data / "camvid" / "train" / "images", bench.model, whole=True)[:2]
    report = evaluate(quantize(bench.model, images, Recipe.paper(8, 8)), bench.pictures, bench.model)
    found = next(each for each in results if (each.model, each.method) == ("segmenter", "Standard"))
    assert found.score == pytest.approx(report.miou, abs=0.006)
    assert found.agreement == pytest.approx(report.agreement, abs=0.006)
    monkeypatch.setattr(Bench, "measure", lambda *_: pytest.fail("measured again"))
    options.run()
    assert read_rows(options.out, Result) == results


def test_the_committed_rows_are_whole():
    with RESULTS.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["fp_score"] for row in rows if row["model"] == "detector"} <= {"51.59"}
    assert {row["fp_score"] for row in rows if row["model"] == "segmenter"} <= {"44.26"}
    places = [tuple(row[name] for name in ("model", "recipe", "precision", "method", "seed")) for row in rows]
    assert len(set(places)) == len(places) > 0


def test_the_page_has_the_means_of_the_rows():
    scores = defaultdict(list)
    for each in read_rows(RESULTS, Result):
        scores[each.model, each.recipe, each.precision, each.method].append(each.score)
    lines = re.findall(r"^\| (paper|accurate) (W\dA\d) \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) == 8
    columns = list(product(("detector", "segmenter"), ("PSAQ", "Standard", "Gaussian")))
    for recipe, precision, figures in lines:
        means = [fmean(scores[model, recipe, precision, method]) for model, method in columns]
        assert [float(figure) for figure in figures.split(" | ")] == pytest.approx(means, abs=0.006)

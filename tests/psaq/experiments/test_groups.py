"""Weights in groups, measured: every cell once, also when the run was interrupted or a recipe has changed."""

from dataclasses import replace

import pytest

from psaq.errors import PsaqError
from psaq.evaluation import evaluate
from psaq.evolution import EvolutionConfig, evolve
from psaq.experiments import groups
from psaq.experiments.groups import METHODS, Groups, Row
from psaq.experiments.rows import read_rows, write_rows
from psaq.images.imagenet import imagenet
from psaq.images.synthetic import load_images
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe


@pytest.fixture
def options(vit, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(groups, "load_model", lambda *_: vit)
    places = (folders / "unused", folders / "val", folders / "run")
    return Groups(
        *places, precisions=("W3A8",), groups=(0, 32), methods=("quantize",), runs=tmp_path, out=folders / "groups.csv"
    )


def test_a_cell_is_measured_as_evaluate_does_and_once(options, vit, monkeypatch):
    replace(options, groups=(32,)).run()
    (grouped,) = read_rows(options.out, Row)
    options.run()
    rows = read_rows(options.out, Row)
    assert [row.group for row in rows] == [0, 32]
    assert rows[1] == grouped
    assert (rows[0].weight_bits, rows[1].weight_bits) == (3, 3.5)
    assert rows[0].megabytes < rows[1].megabytes
    qmodel = quantize(vit, load_images(options.images), Recipe.accurate(3, 8, group=32))
    expected = evaluate(qmodel, imagenet(options.val, vit, options.crop_pct), vit)
    assert (grouped.top1, grouped.agreement, grouped.n) == (expected.top1, expected.agreement, 10)
    monkeypatch.setattr(groups, "METHODS", {"quantize": None})  # nothing is left to measure
    options.run()


def test_a_row_of_another_recipe_is_measured_again(options):
    replace(options, groups=(32,)).run()
    (row,) = read_rows(options.out, Row)
    write_rows(options.out, [replace(row, recipe="another")])
    replace(options, groups=(32,)).run()
    assert read_rows(options.out, Row) == [row]


def test_evolve_is_a_method_beside_quantize(options, vit, monkeypatch):
    quick = EvolutionConfig(rounds=1, num_images=4, image_steps=2, kept_aside=4, steps=3, batch_size=4)
    monkeypatch.setattr(groups, "EVOLUTION", quick)
    replace(options, groups=(32,), methods=tuple(METHODS)).run()
    evolved, _ = read_rows(options.out, Row)
    qmodel, _ = evolve(vit, Recipe.accurate(3, 8, group=32), quick)
    expected = evaluate(qmodel, imagenet(options.val, vit, options.crop_pct), vit)
    assert (evolved.method, evolved.top1, evolved.agreement) == ("evolve", expected.top1, expected.agreement)
    monkeypatch.setattr(groups, "EVOLUTION", replace(quick, steps=2))
    assert evolved.cell.digest != evolved.recipe  # so that it is measured again


def test_evolutions_of_several_recipes_share_their_images(options, monkeypatch):
    monkeypatch.setattr(
        groups, "EVOLUTION", EvolutionConfig(rounds=1, num_images=4, image_steps=2, kept_aside=4, steps=3)
    )
    replace(options, methods=("evolve",)).run()
    (images,) = (options.runs / "starts").iterdir()
    assert len(list(images.glob("*.safetensors"))) == 2  # a student each


def test_an_unknown_method_is_named(options):
    with pytest.raises(PsaqError, match=r"methods \['guess'\]: choose from quantize"):
        replace(options, methods=("guess",)).run()

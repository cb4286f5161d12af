"""The ablation: every change measured once, also when it was interrupted; no change that changes nothing."""

from dataclasses import replace

import pytest

from psaq.errors import PsaqError
from psaq.evaluation import evaluate
from psaq.experiments import ablation
from psaq.experiments.ablation import PARTS, Ablation, Row
from psaq.experiments.rows import read_rows
from psaq.images.imagenet import imagenet
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe


@pytest.fixture
def options(vit, folders, monkeypatch):
    monkeypatch.setattr(ablation, "load_model", lambda *_: vit)
    changes = ("as it is", "no bias compensation", "folded LayerNorm, strength 0.5", "no folded LayerNorm")
    return Ablation(folders / "unused", folders / "val", folders / "run", changes=changes, out=folders / "table.csv")


def test_a_change_is_measured_as_evaluate_does(options, vit):
    options.run()
    rows = read_rows(options.out, Row)
    assert [row.change for row in rows] == list(options.changes[:3])  # at 8 bits nothing is folded anyway
    qmodel = quantize(vit, _images(options), Recipe.accurate(4, 8, fold=0.5))
    expected = evaluate(qmodel, imagenet(options.val, vit, options.crop_pct), vit)
    assert (rows[2].top1, rows[2].agreement, rows[2].n) == (expected.top1, expected.agreement, 10)
    assert rows[2].logit_sqnr == pytest.approx(expected.logit_sqnr, abs=1e-3)


def test_one_image_in_so_many_is_evaluated(options):
    replace(options, every=3, changes=("no collages",)).run()
    assert [row.n for row in read_rows(options.out, Row)] == [4]


def test_rows_that_are_there_are_kept(options, monkeypatch):
    replace(options, changes=("as it is",)).run()
    before = options.out.read_text()
    measured = []
    monkeypatch.setattr(ablation, "quantize", lambda *a, **k: measured.append(a) or quantize(*a, **k))
    options.run()
    assert len(measured) == 2
    assert options.out.read_text().startswith(before)


def test_an_unknown_change_is_refused(options):
    with pytest.raises(PsaqError, match="choose from as it is"):
        replace(options, changes=("no such",)).run()


def test_rows_of_an_earlier_recipe_are_measured_again(options, monkeypatch):
    replace(options, changes=("as it is", "no collages")).run()
    before = read_rows(options.out, Row)
    monkeypatch.setitem(PARTS, "no collages", {"collages": 0, "damping": 0.5})
    replace(options, changes=("as it is", "no collages")).run()
    after = read_rows(options.out, Row)
    assert after[0] == before[0]
    assert [row.change for row in after] == [row.change for row in before]
    assert after[1].recipe == Recipe.accurate(4, 8, **PARTS["no collages"]).digest != before[1].recipe


@pytest.mark.parametrize("change", PARTS)
def test_every_change_is_a_recipe_and_counts_at_some_precision(change):
    recipes = [
        (Recipe.accurate(w, a), Recipe.accurate(w, a, **PARTS[change])) for w, a in ((8, 8), (6, 6), (4, 8), (4, 4))
    ]
    assert not PARTS[change] or any(usual != changed for usual, changed in recipes)


def _images(options):
    return ablation.load_images(options.images)

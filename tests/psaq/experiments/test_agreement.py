"""Implementations of one quantised model compared: all of them, once, and with the figures of evaluate."""

import math
from dataclasses import replace
from functools import partial

import pytest

from psaq.evaluation import evaluate
from psaq.experiments import agreement
from psaq.experiments.agreement import Agreement, Row
from psaq.experiments.rows import read_rows
from psaq.images.imagenet import imagenet
from psaq.images.synthetic import load_images
from psaq.quantization.deployment.runtimes import session
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def options(vit, folders, monkeypatch):
    monkeypatch.setattr(agreement, "load_model", lambda *_: vit)
    return Agreement(
        folders / "unused",
        folders / "val",
        folders / "run",
        every=1,
        precisions=("W8A8",),
        out=folders / "table.csv",
    )


def test_every_implementation_is_compared(options, vit, monkeypatch):
    sessions = []
    monkeypatch.setattr(agreement, "session", lambda file: sessions.append(file) or session(file))
    options.run()
    rows = read_rows(options.out, Row)
    assert len(rows) == len(agreement.KINDS) * 8
    qmodel = quantize(vit, load_images(options.images), Recipe.paper(8, 8, "linear"))
    expected = evaluate(qmodel, imagenet(options.val, vit, options.crop_pct), vit)
    assert (rows[0].top1, rows[0].fp_agreement, rows[0].n) == (expected.top1, expected.agreement, 10)
    exact = {("deployed, float32", "simulation"), ("deployed, bfloat16", "simulation, bfloat16")}
    sqnr = {pair: [row.logit_sqnr for row in rows if (row.implementation, row.reference) == pair] for pair in exact}
    assert sqnr == {pair: [math.inf] * len(agreement.KINDS) for pair in exact}
    assert len(sessions) == len(agreement.KINDS)
    # Its norms and GELUs round elsewhere: on some processors never across a level, on others now and then.
    assert all(row.logit_sqnr > 20 for row in rows if row.implementation == "onnxruntime")


def test_kinds_that_are_there_are_kept(options, monkeypatch):
    monkeypatch.setattr(agreement, "KINDS", agreement.KINDS[:1])
    options.run()
    before = options.out.read_text()
    measured = []
    monkeypatch.setattr(agreement, "quantize", lambda *a, **k: measured.append(a) or quantize(*a, **k))
    replace(options, precisions=("W8A8", "W4A8")).run()
    assert len(measured) == 1
    assert options.out.read_text().startswith(before)


def test_rows_of_an_earlier_recipe_are_measured_again(options, monkeypatch):
    monkeypatch.setattr(agreement, "KINDS", agreement.KINDS[:1])
    options.run()
    before = read_rows(options.out, Row)
    monkeypatch.setitem(agreement.RECIPES, "paper", partial(Recipe.paper, faithful=True))
    options.run()
    after = read_rows(options.out, Row)
    assert len(after) == len(before)
    assert {row.digest for row in after}.isdisjoint(row.digest for row in before)

"""``psaq demo``: its table reaches down to where the sources of images part, and says what is seen in it."""

import html
import json
from dataclasses import replace

import pytest

from psaq.commands.demo import Demo
from psaq.commands.work import demo
from psaq.commands.work.demo import WHY, seen
from psaq.errors import PsaqError
from psaq.images.synthetic import load_images
from psaq.quantization.recipes import parse_precision
from psaq.synthesis import SynthesisConfig
from psaq.tables.comparison import GAUSSIAN, PSAQ, STANDARD, Row
from psaq.tasks.classification import Report


def row(precision, method, top1):
    return Row(
        "micro_vit", precision, method, 95.0, Report(top1=top1, top5=100.0, n=600, agreement=50.0, logit_sqnr=5.0)
    )


def test_the_last_precision_has_the_fewest_bits():
    bits = [parse_precision(precision) for precision in Demo().precisions]
    assert bits[-1] == min(bits) == (4, 4)


def test_what_is_seen_is_of_the_last_precision():
    rows = [
        row("W8A8", STANDARD, 95.0),
        row("W4A4", STANDARD, 37.66),
        row("W4A4", GAUSSIAN, 52.3),
        row("W4A4", PSAQ, 58.8),
    ]
    assert seen(rows) == (
        "At W4A4, calibrated on real scenes / noise / synthesised images, "
        "micro_vit keeps 37.7 / 52.3 / 58.8% of full precision's 95.0%."
    )


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "MICRO_MODELS", ("micro_vit",))
    monkeypatch.setattr(demo, "MICRO_DENSE", ())
    synthesis = SynthesisConfig(num_images=2, steps=2, film_frames=0)
    return Demo(synthesis=synthesis, scenes=10, precisions=("W4A4",), out=tmp_path / "demo")


def test_fewer_scenes_than_are_drawn_will_do_and_none_is_refused_before_the_work(small, monkeypatch):
    monkeypatch.setattr(demo, "MICRO_DENSE", ("micro_detector",))
    replace(small, scenes=2).run()
    assert (small.out / "micro_detector" / "predictions.png").exists()
    with pytest.raises(PsaqError, match="--scenes 0: must be at least 1"):
        replace(small, scenes=0, out=small.out / "none").run()
    assert not (small.out / "none").exists()


def test_what_is_seen_stands_under_the_table_and_in_the_page(small, capsys):
    small.run()
    printed = " ".join(capsys.readouterr().out.split())
    summary = json.loads((small.out / "run.json").read_text())["results"]["summary"]
    assert summary.endswith(WHY)
    assert printed.index("logit SQNR in dB") < printed.index(summary) < printed.index("Everything is in")
    assert summary in html.unescape((small.out / "report.html").read_text())


def test_a_class_weight_is_the_classifiers(small, monkeypatch):
    monkeypatch.setattr(demo, "MICRO_DENSE", ("micro_detector",))
    replace(small, synthesis=replace(small.synthesis, class_weight=2.0)).run()
    made = [load_images(small.out / name) for name in ("micro_vit", "micro_detector")]
    assert [images.provenance["config"]["class_weight"] for images in made] == [2.0, 0.0]

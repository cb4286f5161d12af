"""A real detector and a real segmenter, as their authors hand them over: the scores in full precision are those that
their authors measured, and 8 bits cost next to nothing."""

from pathlib import Path

import pytest

import psaq
from psaq.images.pictures import load_pictures

DATA = Path(__file__).parents[2] / ".." / "shared" / "data" / "dense"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

pytestmark = [pytest.mark.real, pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is not here")]


def test_boxes():
    pytest.importorskip("pycocotools")
    model = psaq.load_model(f"{DATA / 'models.py'}:detector")
    pictures = psaq.coco(DATA / "bccd" / "val", DATA / "bccd" / "val.json", model=model)
    qmodel = psaq.quantize(model, load_pictures(DATA / "bccd" / "train", model, 8, whole=True), psaq.Recipe.paper(8, 8))
    report = psaq.evaluate(qmodel, pictures, model, batch_size=8)
    assert (round(report.reference.ap, 2), round(report.reference.ap50, 2), report.n) == (51.59, 83.98, 87)
    assert abs(report.ap - report.reference.ap) < 1.5
    assert report.agreement > 90
    assert report.logit_sqnr > 20


def test_pixels():
    pytest.importorskip("transformers")
    model = psaq.load_model(f"{DATA / 'models.py'}:segmenter")
    psaq.describe(model, mean=MEAN, std=STD)
    pictures = psaq.segmentation(DATA / "camvid" / "val" / "images", DATA / "camvid" / "val" / "masks", model=model)
    calibration = load_pictures(DATA / "camvid" / "train" / "images", model, 8, whole=True)
    report = psaq.evaluate(psaq.quantize(model, calibration, psaq.Recipe.paper(8, 8)), pictures, model, batch_size=16)
    assert (round(report.reference.miou, 2), report.n) == (44.26, 101)
    assert abs(report.miou - report.reference.miou) < 0.5
    assert report.agreement > 98

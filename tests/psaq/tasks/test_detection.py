"""Boxes scored as pycocotools scores the files that it is given; agreement by partners."""

import contextlib
import io
import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from dense_makes import annotations, dense_model, write_annotations, write_pictures
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import to_tensor

from psaq.errors import PsaqError
from psaq.evaluation import evaluate
from psaq.images.coco import coco
from psaq.models.calling import run
from psaq.models.description import describe
from psaq.quantization.deployment.deploy import deploy
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe
from psaq.tasks.detection import Boxes, Detection, found_boxes, partners

pytest.importorskip("pycocotools")
NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


class Finder(nn.Module):
    """Answers with the boxes that it is given for each image that it knows, through a layer that says nothing."""

    def __init__(self, found, images):
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 1)
        self.found, self.images = found, images

    def forward(self, images):
        nothing = 0 * self.layer(torch.stack(images)).flatten(1).sum(1)
        return [self._of(image, row) for image, row in zip(images, nothing, strict=True)]

    def _of(self, image, nothing):
        found = next(each for each, known in zip(self.found, self.images, strict=True) if torch.equal(known, image))
        return {**found, "scores": found["scores"] + nothing}


def finder(found, images):
    return describe(Finder(found, images), image_size=(48, 60), mean=0.0, std=1.0, takes="list")


def near(content, shift, seed, masks=False):
    """The annotated boxes, moved by up to ``shift`` pixels, some of another class, and some that are nowhere."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for image in content["images"]:
        boxes = [each for each in content["annotations"] if each["image_id"] == image["id"]]
        corners = torch.tensor([each["bbox"] for each in boxes])
        corners[:, 2:] += corners[:, :2]
        corners = torch.cat([corners, 48 * torch.rand(3, 4, generator=draw).sort(-1).values])
        corners[:, 2:] += 1
        corners += shift * torch.rand(corners.shape, generator=draw)
        labels = torch.randint(1, 4, (len(corners),), generator=draw)
        right = torch.tensor([each["category_id"] for each in boxes])
        labels[: len(right) - 1] = right[: len(right) - 1]
        one = {"boxes": corners, "labels": labels, "scores": torch.rand(len(corners), generator=draw)}
        if masks:
            pixels = torch.zeros(len(corners), 1, 48, 60)
            for mask, (left, top, right_end, bottom) in zip(pixels, corners.round().int().tolist(), strict=True):
                mask[0, top:bottom, left:right_end] = 0.9
            one["masks"] = pixels
        found.append(one)
    return found


def by_pycocotools(file, found, kind="bbox"):
    """The scores of the same boxes by pycocotools alone, from files."""
    from pycocotools import mask as run_lengths
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    results = []
    for image, each in enumerate(found, 1):
        for index, (box, label, score) in enumerate(zip(each["boxes"], each["labels"], each["scores"], strict=True)):
            left, top, right, bottom = box.tolist()
            result = {"image_id": image, "category_id": int(label), "score": float(score)}
            if kind == "bbox":
                result["bbox"] = [left, top, right - left, bottom - top]
            else:
                pixels = (each["masks"][index, 0] > 0.5).numpy().astype("uint8", order="F")
                result["segmentation"] = run_lengths.encode(pixels)
                result["segmentation"]["counts"] = result["segmentation"]["counts"].decode()
            results.append(result)
    written = file.with_name("results.json")
    written.write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        judge = COCOeval(truth, truth.loadRes(str(written)), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return [100 * float(value) for value in judge.stats[:6]]


class There(NamedTuple):
    folder: Path
    images: list[Tensor]

    def pictures(self, model):
        return coco(self.folder / "images", self.folder / "boxes.json", model)


@pytest.fixture
def there(tmp_path):
    """A folder of pictures with annotations."""
    files = write_pictures(tmp_path / "images")
    write_annotations(tmp_path / "boxes.json")
    return There(tmp_path, [to_tensor(Image.open(file)) for file in files])


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_scores_are_those_of_pycocotools(there, batch):
    found, other = near(annotations(), 1.5, 0), near(annotations(), 3.0, 1)
    model = finder(found, there.images)
    pictures = there.pictures(model)
    report = evaluate(model, pictures, finder(other, there.images), batch_size=batch)
    for each, boxes in ((report, found), (report.reference, other)):
        wanted = by_pycocotools(there.folder / "boxes.json", boxes)
        scores = [getattr(each, name) for name in NAMES]
        assert 0 < wanted[0] < 100
        for score, expected in zip(scores, wanted, strict=True):
            assert score == pytest.approx(expected) if expected >= 0 else score != score
    assert report.mask_ap is None
    assert 0 < report.agreement < 100


def test_objects_may_be_counted_from_zero(there):
    found = near(annotations(), 1.5, 0)
    model = finder(found, there.images)
    usual = evaluate(model, there.pictures(model)).ap
    content = annotations()
    for each in content["annotations"]:
        each["id"] -= 1
    write_annotations(there.folder / "boxes.json", content)
    assert evaluate(model, there.pictures(model)).ap == usual


def test_boxes_of_no_area_have_no_partner():
    nowhere = torch.tensor([[64.0, 3, 64, 9]]), torch.ones(1), torch.tensor([1])
    other = torch.tensor([[1.0, 1, 1, 1]]), torch.ones(1), torch.tensor([2])
    assert partners(Boxes(*nowhere), Boxes(*other)) == []
    assert partners(Boxes(*nowhere), Boxes(*nowhere)) == []


def test_a_deployed_detector_is_read_as_its_original(there):
    model = dense_model("YOLOS")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    qmodel = quantize(model, images, Recipe.paper(8, 8, scope="linear"))
    exact = deploy(qmodel, torch.float32, "exact")
    report = evaluate(exact, images, qmodel)
    assert report.agreement == 100
    with torch.no_grad():
        pair = [found_boxes(each, run(each, images), [(64, 64)] * 2)[0].scores for each in (qmodel, exact)]
    assert torch.equal(*pair)


def test_masks_are_scored_where_there_are_some(there):
    found = near(annotations(), 1.0, 0, masks=True)
    model = finder(found, there.images)
    report = evaluate(model, there.pictures(model))
    wanted = by_pycocotools(there.folder / "boxes.json", found, "segm")
    assert [report.mask_ap, report.mask_ap50, report.mask_ap75] == pytest.approx(wanted[:3])


def test_nothing_found_is_nothing_scored(there):
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "scores": torch.zeros(0)}
    model = finder([nothing] * 3, there.images)
    report = evaluate(model, there.pictures(model), finder([nothing] * 3, there.images))
    assert (report.ap, report.ap50, report.ap_small, report.agreement) == (0, 0, 0, 100)
    assert report.ap_large != report.ap_large  # there is no such object
    assert report.as_dict()["ap_large"] is None


def test_a_score_is_said_in_a_line(there):
    model = finder(near(annotations(), 1.5, 0), there.images)
    said = str(evaluate(model, there.pictures(model)))
    assert said.startswith("box AP ")
    assert said.endswith("(3 pictures)")
    assert "nan" not in said


def test_images_alone_are_compared_without_boxes(there):
    found = near(annotations(), 1.0, 0)
    report = evaluate(finder(found, there.images), torch.stack(there.images), finder(found, there.images))
    assert report.agreement == 100
    assert report.ap != report.ap


def test_a_detector_that_takes_its_images_one_by_one_is_scored_too(there):
    class OneByOne(Finder):
        def forward(self, images):
            return [each for image in images for each in Finder.forward(self, [image])]

    found = near(annotations(), 1.5, 0)
    one, whole = OneByOne(found, there.images), finder(found, there.images)
    describe(one, image_size=(48, 60), mean=0.0, std=1.0, takes="list")
    report = evaluate(one, there.pictures(one), whole)
    assert report.ap == evaluate(whole, there.pictures(whole)).ap
    assert report.logit_sqnr is None


def boxes(seed, count):
    draw = torch.Generator().manual_seed(seed)
    corners = 20 * torch.rand(count, 2, 2, generator=draw)
    corners = torch.cat([corners[:, 0], corners[:, 0] + corners[:, 1] + 0.1], -1)
    labels = torch.randint(2, (count,), generator=draw)
    return Boxes(corners, torch.rand(count, generator=draw), labels)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**31), one=st.integers(0, 8), other=st.integers(0, 8))
def test_partners_are_alike_and_each_has_one(seed, one, other):
    a, b = boxes(seed, one), boxes(seed + 1, other)
    pairs = partners(a, b)
    for side in zip(*pairs, strict=True):
        assert len(set(side)) == len(pairs)
    assert all(a.labels[row] == b.labels[column] for row, column in pairs)
    assert {(column, row) for row, column in pairs} == set(partners(b, a))
    assert set(partners(a, a)) == {(index, index) for index in range(one)}


def test_queries_become_boxes_in_the_pictures_pixels():
    class Queried(nn.Module):
        config = type("Config", (), {"num_labels": 2})

    likely = torch.tensor([[[4.0, 0, 0], [0, 0, 4.0]]])
    places = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.1, 0.1, 0.2, 0.2]]])
    (found,) = found_boxes(Queried(), {"logits": likely, "pred_boxes": places}, [(100, 200)])
    torch.testing.assert_close(found.boxes[0], torch.tensor([80.0, 30.0, 120.0, 70.0]))
    assert found.labels.tolist()[0] == 0
    assert found.scores[0] == pytest.approx(float(likely[0, 0].softmax(0)[0]))
    assert found.scores[1] < 0.1  # the last class is that of nothing
    Queried.config.num_labels = 3
    (judged,) = found_boxes(Queried(), {"logits": likely, "pred_boxes": places}, [(100, 200)])
    assert judged.scores[1] == pytest.approx(float(likely[0, 1, 2].sigmoid()))


def test_what_finds_no_boxes_is_refused(there):
    model = dense_model("UperNet")
    with pytest.raises(PsaqError, match="its output holds no boxes"):
        evaluate(model, there.pictures(model), task="detection")
    assert found_boxes(model, {"logits": torch.zeros(1, 2)}, [(1, 1)]) is None
    assert Detection.name == "detection"

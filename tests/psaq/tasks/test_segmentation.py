"""Pixels scored as by counting them one by one."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from psaq.errors import PsaqError
from psaq.evaluation import evaluate
from psaq.images.masks import MaskTruth
from psaq.models.description import describe
from psaq.tasks.segmentation import confusion, pixel_logits, pixel_probabilities

VOID = 255


class Painter(nn.Module):
    """Answers with the logits that it is given, whatever the image, one picture after the other."""

    def __init__(self, logits):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.logits, self.shown = logits, 0

    def forward(self, images):
        first, self.shown = self.shown, (self.shown + len(images)) % len(self.logits)
        return {"logits": self.logits[first : first + len(images)] + self.weight}


def painter(logits):
    return describe(Painter(logits), image_size=8, task="segmentation")


def pictures(masks):
    return [(torch.zeros(3, 8, 8), MaskTruth(mask, VOID, f"{index}.png")) for index, mask in enumerate(masks)]


def by_counting(found, masks, classes):
    """mIoU and pixel accuracy in percent, pixel by pixel."""
    pairs = [
        (int(t), int(f))
        for seen, mask in zip(found, masks, strict=True)
        for f, t in zip(seen.flatten(), mask.flatten(), strict=True)
        if t != VOID
    ]
    overlaps = []
    for c in range(classes):
        union = sum(t == c or f == c for t, f in pairs)
        if union:
            overlaps.append(sum(t == c and f == c for t, f in pairs) / union)
    return 100 * sum(overlaps) / len(overlaps), 100 * sum(t == f for t, f in pairs) / len(pairs)


@settings(deadline=None, max_examples=25)
@given(count=st.integers(1, 4), classes=st.integers(2, 5), seed=st.integers(0, 2**31), batch=st.integers(1, 3))
def test_scores_are_those_of_counting_pixels(count, classes, seed, batch):
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, 4, 4, generator=draw)
    other = logits + torch.randn(logits.shape, generator=draw)
    masks = [torch.randint(0, classes, (9, 7), generator=draw, dtype=torch.uint8) for _ in range(count)]
    for mask in masks:
        mask[0, :3] = VOID
    report = evaluate(painter(logits), pictures(masks), painter(other), batch_size=batch)
    found, wanted = (
        F.interpolate(each, (9, 7), mode="bilinear", align_corners=False).argmax(1) for each in (logits, other)
    )
    assert (report.miou, report.pixel_accuracy) == pytest.approx(by_counting(found, masks, classes))
    assert report.reference.miou == pytest.approx(by_counting(wanted, masks, classes)[0])
    assert report.agreement == pytest.approx(100 * float((found == wanted).double().mean()))
    noise = 10 * math.log10(float(other.double().square().sum() / (other - logits).double().square().sum()))
    assert report.logit_sqnr == pytest.approx(noise, abs=1e-3)
    assert report.n == count


def test_images_alone_are_compared_without_masks():
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    report = evaluate(painter(logits), torch.zeros(2, 3, 8, 8), painter(2 * logits))
    assert math.isnan(report.miou)
    assert report.agreement == 100
    assert str(report) == "agreement 100.00 % of pixels, logit SQNR 6.0 dB (2 pictures)"
    assert report.as_dict()["miou"] is None


def test_logits_are_found_in_every_form():
    logits = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for output in (logits, (logits,), {"logits": logits}, {"out": logits}):
        assert pixel_logits(output) is logits
    assert pixel_logits({"logits": logits[0, 0]}) is None
    queries = {"masks_queries_logits": torch.zeros(1, 5, 4, 4), "class_queries_logits": torch.zeros(1, 5, 4)}
    torch.testing.assert_close(pixel_logits(queries), torch.full((1, 3, 4, 4), 5 * 0.25 * 0.5))


def test_probabilities_of_a_pixel_sum_to_one():
    draw = torch.Generator().manual_seed(0)
    logits, masks, classes = (torch.randn(shape, generator=draw) for shape in ((2, 3, 4, 4), (2, 5, 4, 4), (2, 5, 4)))
    for output in (logits, {"masks_queries_logits": masks, "class_queries_logits": classes}):
        probabilities = pixel_probabilities(output)
        torch.testing.assert_close(probabilities.sum(1), torch.ones(2, 4, 4))
        assert probabilities.argmax(1).equal(pixel_logits(output).argmax(1))
    assert pixel_probabilities(logits[0]) is None
    nowhere = {"masks_queries_logits": torch.full((2, 5, 4, 4), -200.0), "class_queries_logits": classes}
    assert pixel_probabilities(nowhere).isfinite().all()


def test_a_class_that_the_model_does_not_know_is_named():
    truth = MaskTruth(torch.tensor([[0, 7]], dtype=torch.uint8), VOID, "street.png")
    with pytest.raises(PsaqError, match=r"street.png: holds class 7, the model knows 0 to 2"):
        confusion(torch.zeros(1, 2, dtype=torch.long), truth, 3)


def test_what_answers_with_no_pixels_is_refused(vit):
    mask = torch.zeros(8, 8, dtype=torch.uint8)
    with pytest.raises(PsaqError, match="its output holds no logits"):
        evaluate(vit, [(torch.zeros(3, 32, 32), MaskTruth(mask, VOID, "0.png"))], task="segmentation")


def test_nan_is_refused():
    logits = torch.full((1, 2, 4, 4), torch.nan)
    with pytest.raises(PsaqError, match="NaN"):
        evaluate(painter(logits), pictures([torch.zeros(4, 4, dtype=torch.uint8)]))


def test_pictures_that_are_void_everywhere_have_no_score():
    void = torch.full((4, 4), VOID, dtype=torch.uint8)
    report = evaluate(painter(torch.zeros(1, 2, 4, 4)), pictures([void]))
    assert str(report) == "nothing to score (1 pictures)"


def test_a_reference_must_be_a_model():
    with pytest.raises(PsaqError, match="must be a torch"):
        evaluate(painter(torch.zeros(1, 2, 4, 4)), pictures([torch.zeros(4, 4, dtype=torch.uint8)]), torch.zeros(1, 2))

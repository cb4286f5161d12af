"""The paper recipe on the real DeiT-Tiny and real images lands on what the authors' quantiser gave there."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from psaq.evaluation import evaluate
from psaq.images.imagenet import imagenet
from psaq.images.pictures import load_pictures, picture_files
from psaq.models.zoo import load_model
from psaq.quantization.checkpoint import load, save
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe
from psaq.tasks.classification import collect_logits, compare

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not DATA.exists(), reason="needs the real weights and images beside the checkout"),
]

EVERY = 5
"""Of the 600 validation images one in so many is taken: 120."""


@pytest.fixture(scope="module")
def deit() -> nn.Module:
    return load_model("deit_tiny", DATA / "weights" / "deit_tiny_patch16_224.safetensors")


@pytest.fixture(scope="module")
def real_images(deit) -> Tensor:
    return load_pictures(picture_files([DATA / "imagenet" / "train"])[:32], deit, crop_pct=0.875)


@pytest.fixture(scope="module")
def val(deit) -> Subset:
    whole = imagenet(DATA / "imagenet" / "val", deit, crop_pct=0.987)
    return Subset(whole, range(0, len(whole), EVERY))


@pytest.fixture(scope="module")
def reference(deit, val) -> tuple[Tensor, Tensor]:
    return collect_logits(deit, val)


def test_the_validation_images_are_found_under_their_wnids(deit):
    whole = imagenet(DATA / "imagenet" / "val", deit, crop_pct=0.987)
    assert len(whole) == 600
    assert len({label for _, label in whole.samples}) == 453


def test_full_precision_accuracy(reference):
    assert compare(*reference).top1 == pytest.approx(81.5, abs=5)


@pytest.mark.parametrize(
    ("weights", "sqnr", "agreement"), [pytest.param(8, 10.3, 94.8, marks=pytest.mark.repeat), (4, 3.9, 84.3)]
)
def test_standard_calibration(deit, real_images, val, reference, weights, sqnr, agreement):
    qmodel = quantize(deit, real_images, Recipe.paper(weights, 8, faithful=True))
    report = evaluate(qmodel, val, reference[0])
    assert report.logit_sqnr == pytest.approx(sqnr, abs=1)
    assert report.agreement == pytest.approx(agreement, abs=6)


@pytest.mark.repeat
def test_wider_scopes_cost_more_and_8_bits_of_the_linear_layers_little(deit, real_images, val, reference):
    few = Subset(val, range(0, len(val), 5))
    logits = reference[0][::5]
    cost = [
        evaluate(quantize(deit, real_images, Recipe.paper(8, 8, scope)), few, logits).logit_sqnr
        for scope in ("linear", "matmul", "all")
    ]
    assert cost[0] > cost[1] > cost[2]
    assert cost[0] > 15


def test_a_w4a8_file_is_an_eighth_and_gives_the_same_bits(deit, real_images, tmp_path):
    qmodel = quantize(deit, real_images[:2], Recipe.paper(4, 8))
    save(qmodel, tmp_path / "deit_tiny-w4a8.safetensors")
    assert (tmp_path / "deit_tiny-w4a8.safetensors").stat().st_size <= 3.6e6
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "deit_tiny-w4a8.safetensors")(real_images[:2]), qmodel(real_images[:2]))

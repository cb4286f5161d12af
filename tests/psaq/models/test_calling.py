"""What a model is called with, and what is in its answer."""

from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, fcos_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator

from psaq.models.calling import logits_of, run, takes, tensors_of

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Batch(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


class Listed(nn.Module):
    def forward(self, images: list[Tensor], targets=None):
        return [{"scores": image.mean((1, 2))} for image in images]


class Written(nn.Module):
    def forward(self, images: "List[Tensor]"):
        return [image.mean() for image in images]


class Either(nn.Module):
    def forward(self, images: Tensor | list[Tensor]):
        return images


class Pixels(nn.Module):
    def forward(self, input_ids=None, pixel_values=None):
        return {"logits": pixel_values.mean((2, 3)), "ids": input_ids}


class Detector(FCOS):
    def forward(self, *images):
        return super().forward(*images)


def _detector():
    anchors = AnchorGenerator(((8,),), ((1.0,),))
    backbone = nn.Conv2d(3, 32, 8, 8)
    backbone.out_channels = 32
    return Detector(backbone, 2, anchor_generator=anchors, min_size=64, max_size=64).eval()


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (Batch, "batch"),
        (Listed, "list"),
        (Written, "list"),
        (Either, "batch"),
        (Pixels, "pixel_values"),
        (_detector, "list"),
        (lambda: fcos_resnet50_fpn(weights=None, weights_backbone=None), "list"),
    ],
)
def test_the_forward_says_what_a_model_takes(build, expected):
    assert takes(build()) == expected


def test_a_forward_that_is_not_pythons_takes_a_batch():
    class Opaque(nn.Module):
        forward = max

    assert takes(Opaque()) == "batch"


def test_what_was_told_counts_first():
    model = Batch()
    model.psaq_takes = "list"
    assert takes(model) == "list"


def test_each_kind_is_called_as_it_takes_its_images():
    means = IMAGES.mean((2, 3))
    assert torch.equal(run(Batch(), IMAGES), means)
    assert torch.equal(run(Pixels(), IMAGES)["logits"], means)
    assert torch.equal(torch.stack([each["scores"] for each in run(Listed(), IMAGES)]), means)


@dataclass
class Output:
    logits: Tensor
    hidden: tuple[Tensor, ...] = ()
    ids: Tensor | None = None


LOGITS, MAP = torch.zeros(2, 5), torch.zeros(2, 5, 4, 4)


@pytest.mark.parametrize(
    "output", [LOGITS, Output(LOGITS), {"logits": LOGITS}, (LOGITS, MAP), [LOGITS], OrderedDict(x=MAP, logits=LOGITS)]
)
def test_a_classifiers_logits_are_found(output):
    assert logits_of(output) is LOGITS


@pytest.mark.parametrize("output", [MAP, Output(MAP), {"boxes": LOGITS}, (MAP, LOGITS), [], None, [{"logits": LOGITS}]])
def test_what_is_no_row_per_image_has_no_logits(output):
    assert logits_of(output) is None


def test_every_floating_tensor_is_found_in_order():
    first, second, third = torch.ones(1), torch.ones(2).half(), torch.ones(3).bfloat16()
    output = [Output(first, (second,), torch.ones(1, dtype=torch.long)), {"a": {"b": third}, "name": "text"}, None]
    found = tensors_of(output)
    assert [id(tensor) for tensor in found] == [id(first), id(second), id(third)]

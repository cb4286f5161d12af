"""What a model is for is found from it and its output, or told."""

import pytest
from dense_makes import MAKES, dense_model
from makes import made

from psaq.errors import PsaqError
from psaq.models.description import describe
from psaq.tasks.find import task_of


@pytest.mark.parametrize("name", MAKES)
def test_boxes_and_pixels_are_found(name):
    assert task_of(dense_model(name)).name == MAKES[name][0]


@pytest.mark.parametrize(
    ("make", "task"),
    [
        ("timm: beit", "classification"),
        ("own: fused", "classification"),
        ("torchvision: swin", "classification"),
        ("transformers: ViT", "classification"),
        ("transformers: DINOv3", "features"),
        ("transformers: SegFormer", "segmentation"),
    ],
)
def test_classes_and_features_are_found(make, task):
    assert task_of(made(make)).name == task


def test_what_is_told_counts():
    model = made("timm: beit")
    assert task_of(model, "features").name == "features"
    assert task_of(describe(model, task="segmentation")).name == "segmentation"
    with pytest.raises(PsaqError, match="task 'boxes': must be one of classification, segmentation, detection"):
        task_of(model, "boxes")

"""Class names and which class is meant."""

import pytest
import timm
import transformers

from psaq.errors import PsaqError
from psaq.models.classes import class_names, find_class


def test_a_models_own_names_come_first(vit):
    vit.pretrained_cfg = {**vit.pretrained_cfg, "label_names": [f"shape {index}" for index in range(10)]}
    assert class_names(vit)[3] == "shape 3"


def test_transformers_names_count_where_they_say_more_than_a_number():
    shape = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "image_size": 16,
    }
    named = transformers.ViTConfig(**shape, id2label={0: "cell", 1: "platelet"}, label2id={"cell": 0, "platelet": 1})
    numbered = transformers.ViTConfig(**shape, num_labels=2)
    models = [transformers.ViTForImageClassification(config) for config in (named, numbered)]
    assert [class_names(model) for model in models] == [["cell", "platelet"], ["class 0", "class 1"]]


def test_imagenet_names_stand_for_1000_classes():
    names = class_names(timm.create_model("vit_tiny_patch16_224", depth=1))
    assert len(names) == 1000
    assert (names[0], names[207]) == ("tench", "golden retriever")


def test_other_classes_are_numbered(vit):
    assert class_names(vit) == [f"class {index}" for index in range(10)]


NAMES = ["tench", "crane", "crane (machine)", "golden retriever"]


@pytest.mark.parametrize(
    ("wanted", "index"), [("0", 0), ("tench", 0), ("Golden", 3), ("RETRIEVER", 3), ("crane", 1), ("machine", 2)]
)
def test_a_class_is_found_by_number_name_or_unique_part(wanted, index):
    assert find_class(NAMES, wanted) == index


@pytest.mark.parametrize(("wanted", "message"), [("4", "none of"), ("wolf", "none of"), ("cra", "crane, crane")])
def test_no_class_or_several_are_an_error(wanted, message):
    with pytest.raises(PsaqError, match=message):
        find_class(NAMES, wanted)

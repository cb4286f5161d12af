"""Detectors and segmenters of every make are quantised whole, scored, saved and drawn."""

import math

import pytest
import torch
from dense_makes import MAKES, annotations, dense_model, write_annotations, write_masks, write_pictures
from repeats import also

from psaq.evaluation import evaluate
from psaq.images.coco import coco
from psaq.images.masks import segmentation
from psaq.models.calling import run, tensors_of
from psaq.quantization.checkpoint import load, save
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe
from psaq.synthesis import SynthesisConfig, synthesize
from psaq.tasks.find import task_of
from psaq.tasks.pictures import draw_predictions

LABELS = {"YOLOS": [1, 2, 3]}
"""Of models that count their labels from 0."""


@pytest.mark.parametrize("name", MAKES)
def test_from_nothing_to_predictions(name, tmp_path):
    model, task = dense_model(name), MAKES[name][0]
    write_pictures(tmp_path / "images")
    if task == "detection":
        pytest.importorskip("pycocotools")
        pictures = coco(tmp_path / "images", write_annotations(tmp_path / "boxes.json"), model, LABELS.get(name))
    else:
        write_masks(tmp_path / "masks")
        pictures = segmentation(tmp_path / "images", tmp_path / "masks", model)
    images = synthesize(model, SynthesisConfig(num_images=2, steps=2, film_frames=0), progress=False)
    assert images.images.isfinite().all()
    qmodel = quantize(model, images, Recipe.paper(8, 8, scope="all"))
    save(qmodel, tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors", model)
    with torch.no_grad():
        answers = (tensors_of(run(each, images.images)) for each in (qmodel, loaded))
        assert all(torch.equal(*pair) for pair in zip(*answers, strict=True))
    assert task_of(qmodel).name == task
    report = evaluate(loaded, pictures, model, batch_size=2)
    assert report.n == 3
    assert report.as_dict() != report.reference.as_dict()
    assert 50 <= report.agreement <= 100
    # What a second stage looks at is chosen by the first.
    assert report.logit_sqnr is None or report.logit_sqnr > 10
    assert not any(isinstance(value, float) and math.isinf(value) for value in report.reference.as_dict().values())
    figure = draw_predictions(model, qmodel, [pictures.picture(0), pictures.picture(1)])
    assert len(figure.axes) == 4
    itself = evaluate(model, pictures, model, batch_size=3)
    assert (itself.agreement, itself.logit_sqnr) == (100, math.inf)


@pytest.mark.parametrize("name", ["Swin FCOS", *also(*(name for name in MAKES if name != "Swin FCOS"))])
def test_few_bits_are_chosen_layer_by_layer(name):
    """Also where the layers of a head see maps of several sizes."""
    model = dense_model(name)
    images = synthesize(model, SynthesisConfig(num_images=2, steps=1, film_frames=0), progress=False).images
    qmodel = quantize(model, images, Recipe.accurate(4, 4))
    with torch.no_grad():
        assert all(answer.isfinite().all() for answer in tensors_of(run(qmodel, images)))
    assert evaluate(qmodel, images, model).logit_sqnr > 3


def test_the_categories_of_other_labels_are_told(tmp_path):
    pytest.importorskip("pycocotools")
    model, content = dense_model("YOLOS"), annotations()
    for each in (*content["categories"], *content["annotations"]):
        name = "id" if "name" in each else "category_id"
        each[name] += 100
    write_pictures(tmp_path / "images")
    file = write_annotations(tmp_path / "boxes.json", content)
    pictures = coco(tmp_path / "images", file, model)
    with pytest.raises(ValueError, match="has the categories 101, 102, 103, the model finds 0"):
        evaluate(model, pictures)
    report = evaluate(model, coco(tmp_path / "images", file, model, labels=[101, 102, 103]))
    assert report.ap >= 0

"""The bundled segmenter and detector: small, as good as their records say."""

import pytest
import torch

from psaq.errors import PsaqError
from psaq.evaluation import evaluate
from psaq.files import read_json
from psaq.images.batches import gaussian_images
from psaq.images.held_out import held_out_scenes
from psaq.images.scene_truths import SceneBoxes, ScenePixels, scene_masks
from psaq.images.scenes import render_scenes
from psaq.models.answers import Answering
from psaq.models.micro import MICRO_DENSE, micro_record, micro_weights
from psaq.models.zoo import load_model
from psaq.quantization.checkpoint import load, save
from psaq.quantization.deployment.onnx_graph import export_onnx
from psaq.quantization.deployment.runtimes import session
from psaq.quantization.deployment.verdict import check_onnx
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe
from psaq.synthesis import SynthesisConfig, synthesize
from psaq.tasks.classification import logit_sqnr
from psaq.tasks.find import task_of


@pytest.mark.parametrize("name", MICRO_DENSE)
def test_it_is_small_and_scores_what_its_record_says(name):
    pytest.importorskip("pycocotools")
    assert micro_weights(name).stat().st_size < 1_000_000
    model, record = load_model(name), read_json(micro_record(name))
    report = evaluate(model, held_out_scenes(name, 100, model))
    what, score = report.headline
    assert what == ("mIoU" if name == "micro_segmenter" else "box AP")
    # A hundred scenes instead of a thousand, of another seed.
    assert abs(score - record["results"]["miou" if name == "micro_segmenter" else "ap"]) < 8
    assert score > 50


@pytest.mark.parametrize("name", MICRO_DENSE)
def test_it_is_quantised_with_no_data_and_loaded_by_its_file_alone(name, tmp_path):
    pytest.importorskip("pycocotools")
    model = load_model(name)
    assert task_of(model).name == {"micro_segmenter": "segmentation", "micro_detector": "detection"}[name]
    images = synthesize(model, SynthesisConfig(num_images=4, steps=5, film_frames=0), progress=False)
    save(quantize(model, images, Recipe.paper(8, 8)), tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors")
    report = evaluate(loaded, held_out_scenes(name, 40, model), model)
    assert report.agreement > 80
    assert report.headline[1] > report.reference.headline[1] - 10


def test_the_segmenters_file_answers_as_the_model(tmp_path):
    pytest.importorskip("onnxruntime")
    model = load_model("micro_segmenter")
    images = gaussian_images(model, 2)
    qmodel = quantize(model, images, Recipe.paper(8, 8, scope="linear"))
    export_onnx(qmodel, tmp_path / "model.onnx")
    with torch.no_grad():
        answers = Answering(qmodel)(images)
    assert logit_sqnr(session(tmp_path / "model.onnx")(images), answers) > 40
    assert check_onnx(tmp_path / "model.onnx", qmodel, images, batch_size=2, repeats=1).agreement is None


def test_the_detectors_file_is_refused_with_its_parts_named(tmp_path):
    model = load_model("micro_detector")
    qmodel = quantize(model, gaussian_images(model, 2), Recipe.paper(8, 8, scope="linear"))
    with pytest.raises(PsaqError, match="name a part that takes a batch of images: backbone"):
        export_onnx(qmodel, tmp_path / "model.onnx")


def test_options_of_an_architecture_are_refused():
    with pytest.raises(PsaqError, match="leave num_classes out"):
        load_model("micro_segmenter", num_classes=3)


def test_masks_and_boxes_are_the_objects():
    pytest.importorskip("pycocotools")
    model = load_model("micro_detector")
    scenes, boxes = render_scenes(6, 5), SceneBoxes(6, 5, model)
    pixels = ScenePixels(6, 5, load_model("micro_segmenter"))
    for index, mask in enumerate(scene_masks(scenes)):
        assert set(mask.unique().tolist()) == {0, 1 + int(scenes.labels[index])}
        assert torch.equal((mask > 0), scenes.coverage[index] >= 0.5)
        assert torch.equal(pixels[index][1].mask, mask.byte())
        left, top, width, height = boxes.annotations["annotations"][index]["bbox"]
        inside = torch.zeros(64, 64, dtype=torch.bool)
        inside[int(top) : int(top + height), int(left) : int(left + width)] = True
        assert not ((mask > 0) & ~inside).any()
        rows, columns = (mask > 0).any(1), (mask > 0).any(0)
        assert (int(rows.nonzero().min()), int(columns.nonzero().max()) + 1) == (int(top), int(left + width))
        image, truth = boxes[index]
        torch.testing.assert_close(image, scenes.images[index], atol=1e-6, rtol=0)
        assert (truth.image_id, truth.size) == (index, (64, 64))
    with pytest.raises(IndexError):
        pixels[6]
    with pytest.raises(PsaqError, match="0 scenes"):
        ScenePixels(0, 0, model)

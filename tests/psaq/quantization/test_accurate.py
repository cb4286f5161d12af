"""The accurate recipe from end to end: every kind of model, every scope and width, files, integers and ONNX."""

from pathlib import Path

import pytest
import torch
from repeats import also
from sqnr import usual_sqnr
from torch import Tensor, nn
from variants import VARIANTS, build, images_for

from psaq import PsaqError, Recipe, SceneDataset, deploy, load, load_model, quantize, save
from psaq.files import load_tensors
from psaq.quantization.checkpoint import KIND
from psaq.quantization.model.points import live_points, points_in_scope, weight_points
from psaq.quantization.quantizers.affine import AffineQuantizer
from psaq.tasks.classification import logit_sqnr

SCOPES = ("matmul", *also("all", "linear"))
EVERY_PART = {"ranges": "search", "fold": 0.5, "error_correction": 0.5, "distillation_steps": 2}


def scenes(model: nn.Module, count: int, seed: int = 7) -> Tensor:
    dataset = SceneDataset(count, seed, model)
    return torch.stack([dataset[index][0] for index in range(count)])


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scope", SCOPES)
@torch.no_grad()
def test_every_kind_of_model_is_quantised_well(variant, scope):
    model, images = build(variant), images_for(variant)
    qmodel = quantize(model, images, Recipe.accurate(8, 8, scope))
    assert live_points(qmodel).keys() == {*points_in_scope(qmodel, scope), *weight_points(qmodel)}
    assert logit_sqnr(qmodel(images), model(images)) > 40


@pytest.mark.parametrize(
    ("variant", "scope"), [("distilled", "linear"), ("attention pooling", "all"), ("swin", "matmul")]
)
@torch.no_grad()
def test_all_parts_go_together(variant, scope):
    model, images = build(variant), images_for(variant)
    qmodel = quantize(model, images, Recipe.accurate(8, 8, scope, **EVERY_PART))
    assert logit_sqnr(qmodel(images), model(images)) > 40


@torch.no_grad()
def test_every_width_works_and_more_bits_cost_less(vit, images):
    reference = vit(images)
    errors = {}
    for weights, activations in ((3, 4), (4, 5), (5, 6), (6, 7), (7, 8), (8, 8)):
        qmodel = quantize(vit, images, Recipe.accurate(weights, activations, ends=None))
        errors[weights] = logit_sqnr(qmodel(images), reference)
        weight_bits = dict.fromkeys(weight_points(qmodel), weights)
        quantizers = live_points(qmodel)
        assert {name: point.bits for name, point in quantizers.items()} == dict.fromkeys(
            quantizers, activations
        ) | weight_bits
    assert errors[8] > errors[7] > errors[5] > errors[3]


@pytest.mark.parametrize("name", ["micro_vit", "micro_swin"])
@pytest.mark.parametrize("bits", [(4, 4), *also((4, 8))])
@torch.no_grad()
def test_trained_models_lose_less_than_by_the_paper(name, bits):
    model = load_model(name)
    x, unseen = scenes(model, 8), scenes(model, 16, seed=8)
    accurate = quantize(model, x, Recipe.accurate(*bits))
    paper = quantize(model, x, Recipe.paper(*bits, scope="matmul"))
    reference = model(unseen)
    assert logit_sqnr(accurate(unseen), reference) > logit_sqnr(paper(unseen), reference) + 1


@pytest.mark.parametrize("name", ["vit", *also("swin")])
def test_the_same_images_give_the_same_bits(name, images, request):
    model = request.getfixturevalue(name)
    one, other = (quantize(model, images, Recipe.accurate(4, 4, **EVERY_PART)).state_dict() for _ in range(2))
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def test_the_global_generator_is_left_alone(vit, images):
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    quantize(vit, images, Recipe.accurate(4, 4, **EVERY_PART))
    assert torch.equal(torch.randn(2), expected)


def test_weights_are_on_their_grids(vit, images):
    qmodel = quantize(vit, images, Recipe.accurate(4, 8))
    for name, point in live_points(qmodel).items():
        if name.endswith("weight_quantizer"):
            weight = qmodel.get_parameter(name.removesuffix("_quantizer"))
            assert torch.equal(point(weight), weight)


def test_no_trace_of_calibration_is_left(swin, images):
    qmodel = quantize(swin, images, Recipe.accurate(4, 8))
    for module in qmodel.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_one_image_and_many_batches_are_enough(vit, images):
    assert quantize(vit, images[:1], Recipe.accurate(4, 4))(images).isfinite().all()
    assert quantize(vit, [images[:1], images[1:]], Recipe.accurate(4, 4), batch_size=2)(images).isfinite().all()
    assert quantize(vit, torch.zeros_like(images), Recipe.accurate(4, 4))(images).isfinite().all()


def test_any_image_size_is_calibrated_on():
    model = build("any image size")
    x = torch.randn(2, 3, 48, 40)
    assert logit_sqnr(quantize(model, x, Recipe.accurate())(x).detach(), model(x).detach()) > 40


def test_what_is_wrong_with_weights_or_images_is_named(vit, images):
    with pytest.raises(PsaqError, match="0 images"):
        quantize(vit, images[:0], Recipe.accurate())
    vit.blocks[1].mlp.fc1.weight.data.fill_(3e38)
    with pytest.raises(PsaqError, match="NaN or infinite"):
        quantize(vit, images, Recipe.accurate())


# Files, integers, ONNX -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["distilled", *also("attention pooling", "registers"), "swin"])
@pytest.mark.parametrize("scope", ["all", *also("matmul", "linear")])
@torch.no_grad()
def test_a_saved_model_comes_back_with_the_same_bits(variant, scope, tmp_path):
    model, images = build(variant), images_for(variant)
    qmodel = quantize(model, images, Recipe.accurate(4, 6, scope, **EVERY_PART))
    save(qmodel, tmp_path / "q.safetensors")
    loaded = load(tmp_path / "q.safetensors", model)
    assert torch.equal(loaded(images), qmodel(images))
    assert loaded.psaq_recipe == qmodel.psaq_recipe
    save(loaded, tmp_path / "again.safetensors")
    (one, header), (other, other_header) = (
        load_tensors(tmp_path / f"{name}.safetensors", KIND) for name in ("q", "again")
    )
    assert header == other_header
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@torch.no_grad()
def test_a_bias_that_was_added_is_saved(tmp_path):
    model = load_model("micro_swin")
    images = scenes(model, 8)
    qmodel = quantize(model, images, Recipe.accurate(4, 8))
    save(qmodel, tmp_path / "q.safetensors")
    loaded = load(tmp_path / "q.safetensors")
    added = [name for name, _ in qmodel.named_parameters() if name.endswith("reduction.bias")]
    assert added
    assert not dict(model.named_parameters()).keys() & set(added)
    for name in added:
        assert torch.equal(loaded.get_parameter(name), qmodel.get_parameter(name))
    assert torch.equal(loaded(images), qmodel(images))


@pytest.mark.parametrize("name", ["vit", "swin"])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("weights", [4, *also(8)])
@torch.no_grad()
def test_the_deployed_model_computes_the_same_bits(name, scope, weights, images, request):
    model = request.getfixturevalue(name)
    qmodel = quantize(model, images, Recipe.accurate(weights, 8, scope))
    fast = deploy(qmodel, torch.float32, "exact")
    assert torch.equal(fast(images), qmodel(images))
    uneven = {point for point, module in live_points(qmodel).items() if not isinstance(module, AffineQuantizer)}
    assert uneven <= set(fast.simulated)
    assert (scope == "linear") == (fast.simulated == [])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_deploys_log_and_split_points(vit, images, dtype):
    qmodel = quantize(vit, images, Recipe.accurate(8, 8))
    logits = deploy(qmodel, dtype)(images.to(dtype))
    assert logits.dtype == dtype
    assert logit_sqnr(logits.float(), vit(images)) > 20


@pytest.mark.parametrize("name", ["vit", "swin"])
@pytest.mark.parametrize("scope", SCOPES)
@torch.no_grad()
def test_onnxruntime_computes_the_same(name, scope, images, tmp_path: Path, request):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    from psaq.quantization.deployment.onnx_graph import export_onnx

    model = request.getfixturevalue(name)
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 32, 32)}
    qmodel = quantize(model, images, Recipe.accurate(4, 8, scope))
    export_onnx(qmodel, tmp_path / "q.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "q.onnx"), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"images": images[:5].numpy()})[0])
    expected = qmodel(images[:5])
    assert logit_sqnr(found, expected) > logit_sqnr(model(images[:5]), expected) + 3
    assert scope == "all" or usual_sqnr(found, expected) > 40

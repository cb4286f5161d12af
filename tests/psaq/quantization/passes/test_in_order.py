"""Calibration in order: which point comes when, what each sees, and what the bias makes up for."""

import copy

import pytest
import torch
from torch import Tensor, nn
from variants import VARIANTS, build, images_for

from psaq.quantization.model.conversion import converted
from psaq.quantization.model.points import live_points, points_in_scope, weight_points
from psaq.quantization.passes import in_order
from psaq.quantization.passes.in_order import point_calls
from psaq.quantization.pipeline import left_out, quantize
from psaq.quantization.quantizers.affine import symmetric_per_channel
from psaq.quantization.recipes import Recipe

BARE = {
    "centre": False,
    "rotate": "none",
    "collages": 0,
    "flat_copies": 0,
    "equalize": False,
    "fold": 0.0,
    "ranges": "full",
}


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def test_points_come_as_a_forward_pass_reaches_them(vit, images):
    model, _ = converted(vit, images)
    names = points_in_scope(model, "matmul") + weight_points(model)
    order = list(point_calls(model, names, images[:1]))
    assert order[:2] == ["patch_embed.proj.input", "patch_embed.proj.weight_quantizer"]
    assert [name.removeprefix("blocks.1.") for name in order if name.startswith("blocks.1.")] == [
        "attn.qkv.input",
        "attn.qkv.weight_quantizer",
        "attn.query",
        "attn.key",
        "attn.probabilities",
        "attn.value",
        "attn.proj.input",
        "attn.proj.weight_quantizer",
        "mlp.fc1.input",
        "mlp.fc1.weight_quantizer",
        "mlp.fc2.input",
        "mlp.fc2.weight_quantizer",
    ]
    assert order[-2:] == ["head.input", "head.weight_quantizer"]
    assert live_points(model) == {}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scope", ["all", "matmul", "linear"])
def test_every_point_is_reached_once(variant, scope):
    images = images_for(variant)
    model, _ = converted(build(variant), images)
    names = points_in_scope(model, scope) + weight_points(model)
    order = list(point_calls(model, names, images[:1]))
    assert sorted(order) == sorted(names)


def outputs_of(model: nn.Module, name: str, images: Tensor) -> Tensor:
    seen = []
    handle = model.get_submodule(name).register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        model(images)
    handle.remove()
    return seen[0]


def layer_names(model: nn.Module) -> list[str]:
    return [name.removesuffix(".weight_quantizer") for name in weight_points(model)]


def mean_error(qmodel: nn.Module, model: nn.Module, name: str, images: Tensor) -> float:
    """How far the mean output of a layer is off, in standard deviations of its channels."""
    found, wanted = (outputs_of(m, name, images) for m in (qmodel, model))
    channel = 1 if found.ndim == 4 and "patch_embed" in name else -1
    found, wanted = (y.movedim(channel, -1).flatten(0, -2).double() for y in (found, wanted))
    return ((found.mean(0) - wanted.mean(0)).abs() / wanted.std(0)).max().item()


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_compensated_biases_keep_each_layers_mean(name, images, request):
    model = request.getfixturevalue(name)
    qmodel = quantize(model, images, Recipe.accurate(4, 4, **BARE))
    without = quantize(model, images, Recipe.accurate(4, 4, bias_compensation=False, **BARE))
    for layer in layer_names(qmodel):
        assert mean_error(qmodel, model, layer, images) < 1e-3, layer
    assert max(mean_error(without, model, layer, images) for layer in layer_names(qmodel)) > 0.05


def test_a_layer_without_bias_gets_one(swin, images):
    assert swin.layers[1].downsample.reduction.bias is None
    qmodel = quantize(swin, images, Recipe.accurate(4, 4))
    assert qmodel.layers[1].downsample.reduction.bias.abs().max() > 0
    assert swin.layers[1].downsample.reduction.bias is None


@pytest.mark.parametrize("left", ["", "blocks.0*", "*.qkv"])
def test_weights_are_chosen_for_quantised_inputs(left, vit, images, monkeypatch):
    """The statistics of a layer are those of what the finished model calls it with, also where some are left in
    float."""
    seen: dict[str, Tensor] = {}
    original = in_order._InOrder._input_statistics

    def spy(calibration, layer):
        statistics = original(calibration, layer)
        seen[layer] = statistics.mean
        return statistics

    monkeypatch.setattr(in_order._InOrder, "_input_statistics", spy)
    qmodel = quantize(vit, images, Recipe.accurate(3, 4, overrides=((left, None, None),) if left else (), **BARE))
    assert len(seen) == {"": 2 + 2 * 4, "blocks.0*": 2 + 4, "*.qkv": 2 + 2 * 3}[left]
    for name in seen.keys() - {"patch_embed.proj"}:
        layer = qmodel.get_submodule(name)
        calls: list[Tensor] = []
        handle = layer.register_forward_pre_hook(lambda _, x, calls=calls: calls.append(x[0]))
        with torch.no_grad():
            qmodel(images)
        handle.remove()
        expected = layer.input(calls[0]).flatten(0, -2).double().mean(0)
        torch.testing.assert_close(seen[name], expected, rtol=1e-5, atol=1e-6)


def test_a_grouped_convolution_is_rounded_to_nearest(vit, images):
    grouped = nn.Conv2d(3, 48, 8, 8, groups=3)
    vit.patch_embed.proj = grouped
    qmodel = quantize(vit, images, Recipe.accurate(4, 4, ends=None, weight_scales="max"))
    proj = qmodel.patch_embed.proj
    assert torch.equal(proj.weight_quantizer.scale, symmetric_per_channel(grouped.weight, 4).scale)
    assert torch.equal(proj.weight, grouped.weight)


@pytest.mark.parametrize("name", ["blocks.0.attn.qkv", "patch_embed.proj.1"], ids=["linear", "convolution"])
@pytest.mark.parametrize("error_correction", [0.0, 0.1])
def test_gptq_lowers_the_error_of_a_layers_output(vit, images, name, error_correction):
    """Judged on layers whose input both recipes quantise alike."""
    if name.startswith("patch_embed"):
        torch.manual_seed(0)
        vit.patch_embed.proj = nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 48, 8, 8)
        ).requires_grad_(False)
    errors = {}
    for rounding in ("nearest", "gptq"):
        parts = BARE | {"rounding": rounding, "bias_compensation": True, "error_correction": error_correction}
        qmodel = quantize(vit, images, Recipe.accurate(3, 8, weight_scales="max", **parts))
        errors[rounding] = (outputs_of(qmodel, name, images) - outputs_of(vit, name, images)).square().mean()
    assert errors["gptq"] < 0.9 * errors["nearest"]


def test_the_reference_is_the_full_precision_model(vit, images):
    """Error correction pulls a layer's output towards what it was, not towards what it became."""
    name = "blocks.1.mlp.fc2"
    errors = []
    for strength in (0.0, 10.0):
        recipe = Recipe.accurate(8, 3, "linear", error_correction=strength, **BARE)
        qmodel = quantize(vit, images, recipe)
        errors.append((outputs_of(qmodel, name, images) - outputs_of(vit, name, images)).square().mean())
    assert errors[1] < errors[0]


def test_the_model_given_is_left_alone(vit, images):
    before = copy.deepcopy(vit.state_dict())
    quantize(vit, images, Recipe.accurate(3, 4, fold=1.0, error_correction=1.0, distillation_steps=2))
    assert vit.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in vit.state_dict().items())


class Borrowing(nn.Module):
    """Multiplies with the weight of a layer that stands elsewhere."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.elsewhere = [layer]

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.elsewhere[0].weight, self.elsewhere[0].bias)


@torch.no_grad()
def test_points_that_nothing_reaches_are_named(vit, images):
    vit.lender = nn.Linear(48, 48)
    vit.norm = nn.Sequential(vit.norm, Borrowing(vit.lender))
    qmodel = quantize(vit, images, Recipe.accurate(8, 8, **BARE))
    assert left_out(qmodel)["points out of reach"].startswith("lender.input, lender.weight_quantizer: nothing passes")
    assert not {"lender.input", "lender.weight_quantizer"} & live_points(qmodel).keys()
    assert "points out of reach" not in left_out(quantize(build("class token"), images, Recipe.accurate(8, 8, **BARE)))

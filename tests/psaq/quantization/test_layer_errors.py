"""SQNR by layer: the definition, the bits, the layers."""

import pytest
import torch

from psaq.errors import PsaqError
from psaq.quantization.layer_errors import layer_sqnr
from psaq.quantization.model.points import Point
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_weights_are_by_the_definition(vit, images):
    weight = vit.blocks[1].mlp.fc1.weight.detach().double()
    qmodel = quantize(vit, images, Recipe.paper(4, 8))
    quantised = qmodel.blocks[1].mlp.fc1.weight_quantizer(weight.float()).double()
    expected = 10 * torch.log10(weight.square().sum() / (weight - quantised).square().sum())
    assert layer_sqnr(qmodel, images)["blocks.1.mlp.fc1"]["weights"] == pytest.approx(expected.item(), abs=1e-6)


def test_activations_are_by_the_definition(vit, images):
    qmodel = quantize(vit, images, Recipe.paper(8, 4, scope="linear"))
    seen = []
    layer = qmodel.blocks[0].mlp.fc2
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        qmodel(images)
    handle.remove()
    (signal,) = seen
    quantised = layer.input(signal)
    expected = 10 * torch.log10(signal.square().sum() / (signal - quantised).square().sum())
    measured = layer_sqnr(qmodel, images, batch_size=3)["blocks.0.mlp.fc2"]["activations"]
    assert measured == pytest.approx(expected.item(), abs=0.01)


@pytest.mark.parametrize("name", ["blocks.0.attn.probabilities", "blocks.1.mlp.fc2.input"])
def test_log_and_split_points_count(vit, images, name):
    recipe = Recipe(8, 4, scope="matmul", softmax="log", gelu="split")
    qmodel = quantize(vit, images, recipe)
    seen = []
    handle = qmodel.get_submodule(name).register_forward_hook(lambda _, x, y: seen.append((x[0], y)))
    with torch.no_grad():
        qmodel(images)
    handle.remove()
    ((signal, quantised),) = [(x.double(), y.double()) for x, y in seen]
    expected = 10 * torch.log10(signal.square().sum() / (signal - quantised).square().sum())
    layer = name.rpartition(".")[0]
    for other in ("query", "key", "value"):  # of a layer's activations the worst counts
        if layer.endswith("attn"):
            qmodel.set_submodule(f"{layer}.{other}", Point())
    measured = layer_sqnr(qmodel, images, batch_size=3)
    assert measured[layer]["activations"] == pytest.approx(expected.item(), abs=0.3)
    assert not any(module._forward_hooks for module in qmodel.modules())


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_each_bit_is_worth_six_decibels(name, images, request):
    model = request.getfixturevalue(name)
    coarse = layer_sqnr(quantize(model, images, Recipe.paper(6, 8)), images)
    fine = layer_sqnr(quantize(model, images, Recipe.paper(8, 8)), images)
    assert list(coarse) == list(fine)
    gains = [fine[layer]["weights"] - coarse[layer]["weights"] for layer in fine if "weights" in fine[layer]]
    assert len(gains) >= 10
    assert all(11 < gain < 13.5 for gain in gains)


def test_layers_are_those_with_something_quantised(vit, images):
    layers = layer_sqnr(quantize(vit, images, Recipe.paper(8, 8)), images)
    assert set(layers["blocks.0.attn.qkv"]) == {"weights", "activations"}
    assert set(layers["blocks.0.attn"]) == {"activations"}
    assert "blocks.0.norm1" not in layers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rounded_weights_are_on_their_levels_and_tell_nothing(vit, images, dtype):
    layers = layer_sqnr(quantize(vit.to(dtype), images, Recipe.accurate(4, 8)), images)
    assert set(layers["blocks.0.attn.qkv"]) == {"activations"}
    assert all(value < 100 for layer in layers.values() for value in layer.values())


def test_hooks_are_gone_afterwards(vit, images):
    qmodel = quantize(vit, images, Recipe.paper(8, 8))
    before = qmodel(images[:1])
    layer_sqnr(qmodel, images)
    assert sum(len(module._forward_hooks) for module in qmodel.modules()) == 0
    assert torch.equal(qmodel(images[:1]), before)


def test_a_model_in_full_precision_is_refused(vit, images):
    with pytest.raises(PsaqError, match="nothing quantised"):
        layer_sqnr(vit, images)

"""Distillation: the answers come closer, weights end on their grids, everything repeats and is left as it was."""

import copy

import pytest
import torch
from torch.nn import functional as F
from variants import build, images_for

from psaq.quantization.calibration import quantize
from psaq.quantization.distillation import answer_loss, distil
from psaq.quantization.layers import QuantLinear
from psaq.quantization.recipes import Recipe

RECIPE = Recipe.accurate(3, 4, reconstruction_steps=0, distillation_steps=0)


def quantized(name: str):
    model, images = build(name), images_for(name)
    return model, quantize(model, images, RECIPE), images


def error(model, reference, images) -> float:
    with torch.no_grad():
        return answer_loss(model(images), reference(images)).item()


@pytest.mark.parametrize("variant", ["class token", "distilled", "swin", "gated MLP"])
def test_answers_come_closer_to_full_precision(variant):
    model, qmodel, images = quantized(variant)
    before = error(qmodel, model, images)
    distil(qmodel, model, images, steps=60)
    assert error(qmodel, model, images) < 0.7 * before


def test_the_loss_is_the_divergence_and_the_relative_error():
    logits, wanted = torch.randn(2, 5, 7, dtype=torch.float64).unbind()
    p, q = wanted.softmax(1), logits.softmax(1)
    divergence = (p * (p / q).log()).sum(1).mean()
    expected = divergence + F.mse_loss(logits, wanted) / wanted.var()
    assert answer_loss(logits, wanted).item() == pytest.approx(expected.item(), rel=1e-12)
    assert answer_loss(wanted, wanted).item() == pytest.approx(0, abs=1e-12)


def test_weights_end_on_their_grids_and_nothing_requires_a_gradient(vit):
    vit.requires_grad_(False)
    images = torch.randn(4, 3, 32, 32)
    qmodel = quantize(vit, images, RECIPE)
    distil(qmodel, vit, images, steps=4)
    for layer in (module for module in qmodel.modules() if isinstance(module, QuantLinear)):
        torch.testing.assert_close(layer.weight_quantizer(layer.weight), layer.weight, rtol=0, atol=0)
    assert not any(tensor.requires_grad for tensor in [*qmodel.parameters(), *qmodel.buffers()])
    assert not any(module._forward_hooks for model in (vit, qmodel) for module in model.modules())


def test_the_reference_is_left_as_it_was(vit):
    before = copy.deepcopy(vit.state_dict())
    quantize(vit, torch.randn(4, 3, 32, 32), Recipe.accurate(3, 4, reconstruction_steps=0, distillation_steps=3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in vit.state_dict().items())
    assert all(parameter.grad is None for parameter in vit.parameters())


def test_it_repeats_bit_by_bit(vit):
    images = torch.randn(4, 3, 32, 32)
    recipe = Recipe.accurate(3, 4, reconstruction_steps=0, distillation_steps=3)
    first, second = (quantize(vit, images, recipe).state_dict() for _ in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())

"""Distillation: the answers come closer, weights end on their grids, everything repeats and is left as it was."""

import copy
from functools import partial

import pytest
import torch
from repeats import also
from torch._dynamo.backends.common import aot_autograd
from torch.nn import functional as F
from variants import build, images_for

import psaq
from psaq.images.held_out import calibration_scenes
from psaq.quantization.model.layers import QuantLinear
from psaq.quantization.model.walk import Blocks
from psaq.quantization.passes import distillation
from psaq.quantization.passes.disagreement import disagreement
from psaq.quantization.passes.distillation import Lesson, answer_error, distil, teach
from psaq.quantization.passes.training import Rates
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe

RECIPE = Recipe.accurate(3, 4, distillation_steps=0)


@pytest.mark.parametrize("name", [*also("micro_vit"), "micro_swin"])
def test_answers_come_closer_or_the_model_stays_as_it_was(name):
    model = psaq.load_model(name)
    images = calibration_scenes(model, 8)
    qmodel = quantize(model, images, RECIPE)
    before, state = answer_error(qmodel, model, images, Lesson()), copy.deepcopy(qmodel.state_dict())
    distil(qmodel, model, images, steps=20)
    kept = all(torch.equal(tensor, state[key]) for key, tensor in qmodel.state_dict().items())
    assert kept or answer_error(qmodel, model, images, Lesson()) < before


def test_a_model_that_was_disturbed_finds_back():
    model = psaq.load_model("micro_swin")
    images, others = calibration_scenes(model, 16).split(8)
    qmodel = quantize(model, images, RECIPE)
    with torch.no_grad():
        for name, parameter in qmodel.named_parameters():
            if name.endswith("norm1.bias"):
                parameter += 0.5
    before = answer_error(qmodel, model, images, Lesson()), answer_error(qmodel, model, others, Lesson())
    distil(qmodel, model, images, steps=40)
    assert answer_error(qmodel, model, images, Lesson()) < 0.7 * before[0]
    assert answer_error(qmodel, model, others, Lesson()) < 0.9 * before[1], "also on images that it was not trained on"


def test_training_that_does_harm_is_undone(vit, monkeypatch):
    images = torch.randn(4, 3, 32, 32)
    qmodel = quantize(vit, images, RECIPE)
    state = copy.deepcopy(qmodel.state_dict())
    monkeypatch.setattr(distillation, "Lesson", partial(Lesson, rates=Rates(floats=10.0)))
    distil(qmodel, vit, images, steps=3)
    assert all(torch.equal(tensor, state[key]) for key, tensor in qmodel.state_dict().items())


def test_a_model_in_which_no_blocks_are_found_learns_by_its_answers(vit, monkeypatch):
    monkeypatch.setattr(distillation, "blocks", lambda *_: Blocks((), (), 0))
    images = torch.randn(4, 3, 32, 32)
    losses = {}
    for weight in (0.0, 1.0):
        qmodel = quantize(vit, images, RECIPE)
        losses[weight] = teach(qmodel, vit, images, 2, Lesson(images=2, block_weight=weight))
    assert losses[1.0] == losses[0.0]


@pytest.mark.parametrize("name", ["vit", *also("micro_swin", "micro_segmenter")])
def test_compiled_models_teach_the_same(name, request, monkeypatch):
    """Turn after turn, whose hooks are new ones each time. The code generator is left out: it takes minutes, and rounds
    in other places."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    model = request.getfixturevalue(name) if name == "vit" else psaq.load_model(name)
    images = torch.randn(4, 3, 32, 32) if name == "vit" else psaq.gaussian_images(model, 4)
    start = quantize(model, images, RECIPE)
    losses = {}
    for compiled in (False, True):
        qmodel = copy.deepcopy(start)
        lessons = [Lesson(images=2, seed=turn, compiled=compiled) for turn in range(2)]
        losses[compiled] = [teach(qmodel, model, images, 2, lesson) for lesson in lessons]
    assert losses[True] == losses[False]


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_what_no_compiler_takes_is_named(vit, monkeypatch, where):
    def refusing(*_):
        raise RuntimeError("no compiler here")

    backends = {"forward": refusing, "backward": aot_autograd(fw_compiler=lambda graph, _: graph, bw_compiler=refusing)}
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backends[where]))
    images = torch.randn(2, 3, 32, 32)
    with pytest.raises(psaq.PsaqError, match=r"torch\.compile does not take this model \(.*no compiler here\); train"):
        teach(quantize(vit, images, RECIPE), vit, images, 1, Lesson(images=2, compiled=True))


@pytest.mark.parametrize("variant", ["distilled", "registers", "gated MLP"])
def test_any_model_that_psaq_walks_can_be_distilled(variant):
    model, images = build(variant), images_for(variant)
    recipe = Recipe.accurate(3, 4, distillation_steps=2)
    assert quantize(model, images, recipe)(images).isfinite().all()


def test_the_loss_is_the_divergence_and_the_relative_error():
    logits, wanted = torch.randn(2, 5, 7, dtype=torch.float64).unbind()
    p, q = wanted.softmax(1), logits.softmax(1)
    divergence = (p * (p / q).log()).sum(1).mean()
    expected = divergence + F.mse_loss(logits, wanted) / wanted.var()
    found = disagreement([logits], [wanted], "classification")
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    assert disagreement([wanted], [wanted], "classification").item() == pytest.approx(0, abs=1e-12)


def test_weights_end_on_their_grids_and_nothing_requires_a_gradient(vit):
    vit.requires_grad_(False)
    images = torch.randn(4, 3, 32, 32)
    qmodel = quantize(vit, images, RECIPE)
    distil(qmodel, vit, images, steps=4)
    for layer in (module for module in qmodel.modules() if isinstance(module, QuantLinear)):
        torch.testing.assert_close(layer.weight_quantizer(layer.weight), layer.weight, rtol=0, atol=0)
    assert not any(tensor.requires_grad for tensor in [*qmodel.parameters(), *qmodel.buffers()])
    assert not any(module._forward_hooks for model in (vit, qmodel) for module in model.modules())


@pytest.mark.parametrize("rate", [0.0, 5.0])
def test_weights_stay_where_they_are_told_to(vit, rate):
    images = torch.randn(4, 3, 32, 32)
    qmodel = quantize(vit, images, RECIPE)
    before = copy.deepcopy(qmodel)
    teach(qmodel, vit, images, 4, Lesson(rates=Rates(weights=rate)))
    layers = [name for name, module in qmodel.named_modules() if isinstance(module, QuantLinear)]
    stayed = [torch.equal(qmodel.get_submodule(name).weight, before.get_submodule(name).weight) for name in layers]
    assert all(stayed) == (rate == 0)
    assert not torch.equal(qmodel.blocks[0].norm1.bias, before.blocks[0].norm1.bias)


def test_in_bfloat16_products_are_rounded_and_losses_and_numbers_are_not(vit):
    images = torch.randn(4, 3, 32, 32)
    qmodel = quantize(vit, images, RECIPE)
    losses = {}
    for precision in ("float32", "bfloat16"):
        both, rounded = (copy.deepcopy(qmodel), copy.deepcopy(vit)), []
        for model in both:
            model.head.register_forward_hook(
                lambda *_, rounded=rounded: rounded.append(torch.is_autocast_enabled("cpu"))
            )
        losses[precision] = teach(*both, images, 4, Lesson(precision=precision))
        assert rounded[-2:] == [precision == "bfloat16"] * 2
        assert {tensor.dtype for tensor in both[0].parameters()} == {torch.float32}
    # a rounding to 8 bits tips some of the levels of 4 bits into their neighbours
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.2)
    assert losses["bfloat16"] != losses["float32"]


def test_the_reference_is_left_as_it_was(vit):
    before = copy.deepcopy(vit.state_dict())
    quantize(vit, torch.randn(4, 3, 32, 32), Recipe.accurate(3, 4, distillation_steps=3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in vit.state_dict().items())
    assert all(parameter.grad is None for parameter in vit.parameters())


def test_it_repeats_bit_by_bit(vit):
    images = torch.randn(4, 3, 32, 32)
    recipe = Recipe.accurate(3, 4, distillation_steps=3)
    first, second = (quantize(vit, images, recipe).state_dict() for _ in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())

"""A nudge moves what a quantised model answers, before it is quantised, and leaves no trace."""

import pytest
import torch

from psaq.experiments.nudged import float_arithmetic, nudged
from psaq.quantization.model.conversion import converted
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe


@pytest.fixture
def x():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_nudge_is_small_repeats_and_leaves_no_trace(vit, x):
    model, _ = converted(vit, x)
    before, moved = model(x), []
    for _ in range(2):
        with nudged(float_arithmetic(model), 1e-6, torch.Generator().manual_seed(1)):
            moved.append(model(x))
    assert torch.equal(*moved)
    assert not torch.equal(moved[0], before)
    torch.testing.assert_close(moved[0], before, rtol=1e-4, atol=1e-4)
    assert torch.equal(model(x), before)


@torch.no_grad()
def test_what_is_quantised_stays_on_its_levels(vit, x):
    qmodel = quantize(vit, x, Recipe.paper(8, 4))
    with nudged(float_arithmetic(qmodel), 1e-2, torch.Generator().manual_seed(1)):
        logits = qmodel(x)
    assert not torch.equal(logits, qmodel(x))
    steps = (logits - logits.min()) / qmodel.head.output.scale
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)


def test_no_trace_is_left_by_an_error_either(vit):
    with pytest.raises(AssertionError), nudged([vit.norm], 1e-6, torch.Generator()):
        vit(torch.zeros(1, 3, 8, 8))
    assert not vit.norm._forward_hooks


def test_all_float_arithmetic_of_a_block_is_found(vit, x):
    model, _ = converted(vit, x)
    found = float_arithmetic(model)
    assert {name for name, module in model.blocks[0].named_modules() if module in found} == {
        "norm1",
        "attn.qkv.output",
        "attn.scores",
        "attn.proj.output",
        "norm2",
        "mlp.fc1.output",
        "mlp.act",
        "mlp.fc2.output",
    }
    assert model.patch_embed.proj.output in found

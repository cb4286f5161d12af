"""Reconstruction: the block's error falls, weights end on their grids, everything repeats."""

import copy

import pytest
import torch
from torch.utils._pytree import tree_flatten

from psaq.errors import PsaqError
from psaq.quantization.model.layers import QuantLinear
from psaq.quantization.passes import training
from psaq.quantization.passes.block_calls import BlockCalls
from psaq.quantization.passes.reconstruction import reconstruct
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe

RECIPE = Recipe.accurate(3, 4)


@pytest.fixture
def images():
    return torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def block_and_data(vit, images):
    """A quantised block, tokens that go in and what the full-precision block makes of them."""
    qmodel = quantize(vit, images, RECIPE)
    tokens = torch.randn(8, 17, vit.embed_dim, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return qmodel.blocks[0], tokens, vit.blocks[0](tokens)


def train(block, tokens, outputs, steps, name="a block"):
    calls = BlockCalls([tokens[:, None]], [True], tree_flatten(((tokens,), {}))[1])
    reconstruct(block, calls, outputs[:, None], steps, name)


def error(block, tokens, outputs):
    with torch.no_grad():
        return float((block(tokens) - outputs).square().mean())


def test_the_error_falls(block_and_data):
    block, tokens, outputs = block_and_data
    before = error(block, tokens, outputs)
    train(block, tokens, outputs, steps=100)
    assert error(block, tokens, outputs) < 0.9 * before


def test_weights_end_on_their_grids_and_ranges_adapt(block_and_data):
    block, tokens, outputs = block_and_data
    scales = {name: buffer.clone() for name, buffer in block.named_buffers() if name.endswith("input.scale")}
    train(block, tokens, outputs, steps=5)
    for layer in (module for module in block.modules() if isinstance(module, QuantLinear)):
        torch.testing.assert_close(layer.weight_quantizer(layer.weight), layer.weight, rtol=0, atol=0)
    buffers = dict(block.named_buffers())
    assert all(not torch.equal(buffers[name], scale) and (buffers[name] > 0).all() for name, scale in scales.items())
    assert not any(buffer.requires_grad for buffer in buffers.values())
    assert all(parameter.grad is None for parameter in block.parameters())


def test_it_repeats_bit_by_bit(block_and_data):
    block, tokens, outputs = block_and_data
    twin = copy.deepcopy(block)
    for one in (block, twin):
        train(one, tokens, outputs, steps=5)
    assert all(torch.equal(a, b) for a, b in zip(block.state_dict().values(), twin.state_dict().values(), strict=True))


def test_quantize_trains_its_blocks_and_leaves_frozen_parameters_frozen(vit, images):
    vit.requires_grad_(False)
    plain, trained = (
        quantize(vit, images, RECIPE),
        quantize(vit, images, Recipe.accurate(3, 4, reconstruction_steps=3)),
    )
    assert not torch.equal(plain.blocks[0].norm1.weight, trained.blocks[0].norm1.weight)
    assert not any(parameter.requires_grad for parameter in trained.parameters())


def test_the_last_block_is_trained_also_without_a_head(vit, images):
    vit.reset_classifier(0)
    plain, trained = (
        quantize(vit, images, RECIPE),
        quantize(vit, images, Recipe.accurate(3, 4, reconstruction_steps=3)),
    )
    assert not torch.equal(plain.blocks[-1].norm2.weight, trained.blocks[-1].norm2.weight)


def spoilt_at(monkeypatch, number, factor):
    """Let the gradients of the step of this number be NaN or infinite; every other step is sound."""
    adam, calls = torch.optim.Adam.step, []

    def step(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.grad.fill_(factor)
        return adam(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", step)


@pytest.mark.parametrize(("spoilt", "said"), [(3, 4), (6, 6)], ids=["seen in the next loss", "the last step"])
@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_nan_in_training_stops_it_at_its_step_and_block(vit, images, monkeypatch, spoilt, said, factor):
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    spoilt_at(monkeypatch, spoilt, factor)
    with pytest.raises(PsaqError, match=rf"training of blocks\.0: NaN or infinity at step {said} "):
        quantize(vit, images, Recipe.accurate(3, 4, reconstruction_steps=6))
    assert all(torch.equal(tensor, before[name]) for name, tensor in vit.state_dict().items())
    assert all(parameter.requires_grad for parameter in vit.parameters())


def test_a_loss_that_is_looked_at_later_is_named_by_its_own_step():
    losses = [torch.tensor(1.0)] * 30 + [torch.tensor(float("nan"))] * 3
    with pytest.raises(PsaqError, match=r"training of it: NaN or infinity at step 31 \(loss nan\)"):
        training._check_finite("it", losses, [])
    training._check_finite("it", losses[:30], [torch.zeros(2)])

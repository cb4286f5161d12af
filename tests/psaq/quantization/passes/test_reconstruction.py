"""Reconstruction: the block's error falls, weights end on their grids, everything repeats."""

import copy

import pytest
import torch

from psaq.quantization.model.layers import QuantLinear
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


def error(block, tokens, outputs):
    with torch.no_grad():
        return float((block(tokens) - outputs).square().mean())


def test_the_error_falls(block_and_data):
    block, tokens, outputs = block_and_data
    before = error(block, tokens, outputs)
    reconstruct(block, tokens, outputs, steps=100)
    assert error(block, tokens, outputs) < 0.9 * before


def test_weights_end_on_their_grids_and_ranges_adapt(block_and_data):
    block, tokens, outputs = block_and_data
    scales = {name: buffer.clone() for name, buffer in block.named_buffers() if name.endswith("input.scale")}
    reconstruct(block, tokens, outputs, steps=5)
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
        reconstruct(one, tokens, outputs, steps=5)
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

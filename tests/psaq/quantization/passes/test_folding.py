"""Folding and equalising: the logits stay, the ranges become even."""

import copy

import pytest
import timm
import torch
from timm.layers import RmsNorm
from torch import Tensor, nn
from variants import VARIANTS, build, images_for

from psaq.evaluation import logit_sqnr
from psaq.quantization.model.conversion import converted
from psaq.quantization.model.neighbours import fills_its_windows, normalised_inputs
from psaq.quantization.passes.folding import equalize_attention, fold_norms

PLAIN = [name for name in VARIANTS if name not in ("layer scale, query-key norm", "attention and MLP norm")]


def extents(model: nn.Module, module: nn.Module, images: Tensor) -> Tensor:
    """max|output| of each channel."""
    seen = []
    handle = module.register_forward_hook(lambda _, __, output: seen.append(output.flatten(0, -2).abs().amax(0)))
    with torch.no_grad():
        model(images)
    handle.remove()
    return seen[0]


def spread(extent: Tensor) -> float:
    return (extent.max() / extent.min()).item()


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_the_logits_stay(variant, centre):
    model, images = converted(build(variant)), images_for(variant)
    before = model(images)
    fold_norms(model, [images], 1.0, centre)
    assert logit_sqnr(model(images), before) > 90
    equalize_attention(model, [images], centre)
    assert logit_sqnr(model(images), before) > 90


@pytest.mark.parametrize("variant", ["class token", "distilled", "swin"])
def test_folded_norms_emit_even_channels(variant):
    model, images = converted(build(variant)), images_for(variant)
    pairs = list(normalised_inputs(model))
    assert len(pairs) == 4 + 5 * (variant == "swin")
    before = copy.deepcopy(model)
    fold_norms(model, [images[:1], images[1:]], 1.0)
    for (parent, name, _), (old_parent, _, _) in zip(pairs, normalised_inputs(before), strict=True):
        assert spread(extents(model, getattr(parent, name), images)) < 1.001
        assert spread(extents(before, getattr(old_parent, name), images)) > 1.5


def middles(model: nn.Module, module: nn.Module, images: Tensor) -> Tensor:
    """The middle of each channel's range, as part of its extent."""
    seen = []
    handle = module.register_forward_hook(lambda _, __, output: seen.append(output.flatten(0, -2)))
    with torch.no_grad():
        model(images)
    handle.remove()
    return (seen[0].amax(0) + seen[0].amin(0)) / (2 * seen[0].abs().amax(0))


@pytest.mark.parametrize("variant", ["class token", "distilled", "swin"])
def test_centred_channels_reach_as_far_down_as_up(variant):
    model, images = converted(build(variant)), images_for(variant)
    fold_norms(model, [images], 0.5, centre=True)
    equalize_attention(model, [images], centre=True)
    for parent, name, _ in normalised_inputs(model):
        assert middles(model, getattr(parent, name), images).abs().max() < 1e-4
    for qkv in (module.qkv for module in model.modules() if hasattr(module, "qkv")):
        query, key, value = middles(model, qkv, images).chunk(3)
        assert max(key.abs().max(), value.abs().max()) < 1e-4
        assert query.abs().max() > 0.01, "a query cannot be moved"


@torch.no_grad()
def test_windows_that_are_padded_are_not_centred():
    """Padding holds zeros behind the norm: they would not stand for the middle."""
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=40, depths=(2, 2), embed_dim=24, num_heads=(2, 2)
    )
    model, images = converted(model), torch.randn(3, 3, 40, 40)
    assert not fills_its_windows(model.layers[0].blocks[0])
    before = model(images)
    fold_norms(model, [images], 1.0, centre=True)
    assert logit_sqnr(model(images), before) > 90


def test_half_the_strength_leaves_half_of_the_spread():
    model, images = converted(build("class token")), images_for("class token")
    norm = model.blocks[0].norm1
    before = extents(model, norm, images)
    fold_norms(model, [images], 0.5)
    assert spread(extents(model, norm, images)) == pytest.approx(spread(before) ** 0.5, rel=1e-3)


@pytest.mark.parametrize("variant", PLAIN)
def test_equalised_attention_has_even_channels(variant):
    model, images = converted(build(variant)), images_for(variant)
    equalize_attention(model, [images[:2], images[2:]])
    layers = [module.qkv for module in model.modules() if hasattr(module, "qkv")]
    assert len(layers) >= 2
    for qkv in layers:
        query, key, value = extents(model, qkv, images).chunk(3)
        ratio = query / key
        assert spread(ratio) < 1.001
        assert spread(value) < 1.001


@pytest.mark.parametrize("variant", ["layer scale, query-key norm", "attention and MLP norm"])
def test_attention_with_norms_inside_is_left_alone(variant):
    model, images = converted(build(variant)), images_for(variant)
    before = copy.deepcopy(model.state_dict())
    equalize_attention(model, [images])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("variant", ["class token", "swin"])
@torch.no_grad()
def test_a_qkv_without_bias_is_equalised(variant):
    model, images = converted(build(variant)), images_for(variant)
    for module in model.modules():
        if hasattr(module, "qkv"):
            module.qkv.bias = None
    before = model(images)
    fold_norms(model, [images], 1.0, centre=True)
    equalize_attention(model, [images], centre=True)
    assert logit_sqnr(model(images), before) > 90


@torch.no_grad()
def test_a_root_mean_square_norm_is_folded(vit):
    for block in vit.blocks:
        block.norm2 = RmsNorm(48)
        nn.init.uniform_(block.norm2.weight, 0.2, 2)
    model, images = converted(vit), torch.randn(2, 3, 32, 32)
    before = model(images)
    fold_norms(model, [images], 1.0, centre=True)
    assert spread(extents(model, model.blocks[1].norm2, images)) < 1.001
    assert logit_sqnr(model(images), before) > 90


@torch.no_grad()
def test_a_channel_that_is_always_zero_keeps_a_factor(vit):
    model, images = converted(vit), torch.randn(2, 3, 32, 32)
    norm, qkv = model.blocks[0].norm1, model.blocks[0].attn.qkv
    norm.weight[3], norm.bias[3] = 0, 0
    qkv.weight[5], qkv.bias[5] = 0, 0  # a query channel
    qkv.weight[-1], qkv.bias[-1] = 0, 0  # a value channel
    before = model(images)
    fold_norms(model, [images], 1.0)
    equalize_attention(model, [images])
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert logit_sqnr(model(images), before) > 90

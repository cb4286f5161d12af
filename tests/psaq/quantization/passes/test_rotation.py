"""Rotating: the logits stay, no channel stands out."""

import copy

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from rescaling import Rescaling
from timm.layers import RmsNorm
from torch import Tensor, nn
from variants import VARIANTS, build, images_for

from psaq.quantization.passes.rotation import mean_keeping_rotation, random_rotation
from psaq.tasks.classification import logit_sqnr

NOT_ROTATED = ("distilled, unused norm", "norm before", "norm after", "swin, padded windows")


def unchanged(model: nn.Module, before: nn.Module) -> bool:
    pairs = zip(model.state_dict().values(), before.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_the_logits_stay(variant):
    images = images_for(variant)
    rescaling = Rescaling(build(variant), images)
    model = rescaling.model
    before = model(images)
    rescaling.rotate_streams()
    assert logit_sqnr(model(images), before) > 90
    rescaling.rotate_heads()
    assert logit_sqnr(model(images), before) > 90


@pytest.mark.parametrize("variant", VARIANTS)
def test_streams_are_rotated_where_everything_that_touches_them_is_known(variant):
    rescaling = Rescaling(build(variant), images_for(variant))
    before = copy.deepcopy(rescaling.model)
    rescaling.rotate_streams()
    assert len(rescaling.streams()) == (variant not in NOT_ROTATED)
    assert unchanged(rescaling.model, before) == (variant in NOT_ROTATED)


@pytest.mark.parametrize("variant", ["class token", "distilled", "swin"])
@torch.no_grad()
def test_a_channel_that_stands_out_does_so_no_longer(variant):
    images = images_for(variant)
    rescaling = Rescaling(build(variant), images)
    model = rescaling.model
    block = (model.layers[1].blocks if variant == "swin" else model.blocks)[1]
    block.norm1.weight[3] = 50
    before = extents(block.norm1, model, images)
    rescaling.rotate_streams()
    after = extents(block.norm1, model, images)
    assert before.max() / before.median() > 10
    assert after.max() / after.median() < 4


def extents(module: nn.Module, model: nn.Module, images: Tensor) -> Tensor:
    """max|output| of each channel."""
    seen = []
    handle = module.register_forward_hook(lambda _, __, output: seen.append(output.flatten(0, -2).abs().amax(0)))
    model(images)
    handle.remove()
    return seen[0]


@torch.no_grad()
def test_heads_are_rotated_each_by_itself(vit):
    rescaling = Rescaling(vit, torch.zeros(1, 3, 32, 32))
    model = rescaling.model
    query = model.blocks[0].attn.qkv.weight[:48].clone().unflatten(0, (-1, 48 // model.blocks[0].attn.num_heads))
    rescaling.rotate_heads()
    turned = model.blocks[0].attn.qkv.weight[:48].unflatten(0, query.shape[:2])
    assert not torch.allclose(turned, query, atol=1e-3)
    torch.testing.assert_close(turned.square().sum(1), query.square().sum(1))


@pytest.mark.parametrize("variant", ["layer scale, query-key norm", "attention and MLP norm"])
def test_heads_with_norms_inside_are_left_alone(variant):
    rescaling = Rescaling(build(variant), images_for(variant))
    before = copy.deepcopy(rescaling.model)
    assert rescaling.attentions() == []
    rescaling.rotate_heads()
    assert unchanged(rescaling.model, before)


@torch.no_grad()
def test_layer_scales_move_into_the_layers_before_them():
    variant = "layer scale, query-key norm"
    rescaling = Rescaling(build(variant), images_for(variant))
    rescaling.rotate_streams()
    blocks = rescaling.model.blocks
    assert len(blocks) == 2
    assert all((block.ls1.gamma == 1).all() and (block.ls2.gamma == 1).all() for block in blocks)


@torch.no_grad()
def test_every_stage_of_a_swin_but_the_first_is_rotated():
    model = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=24, num_heads=(1, 1, 2, 2), depths=(1, 1, 2, 1))
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    rescaling = Rescaling(model, images)
    model = rescaling.model
    before = model(images)
    assert [stream.channels for stream in rescaling.streams()] == [48, 96, 192]
    rescaling.rotate_streams()
    assert logit_sqnr(model(images), before) > 90


@torch.no_grad()
def test_norms_and_layers_without_offsets_are_rotated(vit):
    for block in vit.blocks:
        block.norm2 = RmsNorm(48)
        block.norm1 = nn.LayerNorm(48, elementwise_affine=False)
        nn.init.uniform_(block.norm2.weight, 0.2, 2)
        block.attn.qkv.bias = None
        block.attn.proj.bias = None
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rescaling = Rescaling(vit, images)
    model = rescaling.model
    before = model(images)
    assert len(rescaling.streams()) == 1
    rescaling.rotate_streams()
    rescaling.rotate_heads()
    assert logit_sqnr(model(images), before) > 90


@pytest.mark.parametrize("part", ["head", "mlp", "pooling", "grouped embedding"])
def test_a_stream_that_cannot_take_a_rotation_up_is_left_alone(vit, part):
    if part == "head":
        vit.reset_classifier(0)
    if part == "mlp":
        vit.blocks[1].mlp = nn.Identity()
    if part == "pooling":
        vit.global_pool = "avgmax"
    if part == "grouped embedding":
        vit.patch_embed.proj = nn.Conv2d(3, 48, 8, 8, groups=3)
    rescaling = Rescaling(vit, torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    before = copy.deepcopy(rescaling.model)
    assert rescaling.streams() == []
    rescaling.rotate_streams()
    assert unchanged(rescaling.model, before)


@given(st.integers(2, 65), st.integers(0, 2**32))
def test_rotations_are_orthogonal_and_keep_the_mean(channels, seed):
    draw = torch.Generator().manual_seed(seed)
    identity = torch.eye(channels, dtype=torch.float64)
    rotation, x = mean_keeping_rotation(channels, draw), torch.randn(5, channels, generator=draw, dtype=torch.float64)
    torch.testing.assert_close(rotation @ rotation.T, identity)
    torch.testing.assert_close((x @ rotation).mean(1), x.mean(1))
    other = random_rotation(channels, draw)
    torch.testing.assert_close(other @ other.T, identity)

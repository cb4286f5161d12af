"""Patch features: shapes, values, and hooks that never stay behind."""

import pytest
import timm
import torch
from makes import images_for, made
from torch import nn

from psaq.errors import PsaqError
from psaq.models.features import feature_sites, patch_features, record_patch_features
from psaq.quantization.model.conversion import converted


def _hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


def test_features_are_attention_times_values(vit):
    images = torch.randn(3, 3, 32, 32)
    features = patch_features(vit, images)
    block = vit.blocks[0]
    tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
    qkv = block.attn.qkv(block.norm1(tokens)).reshape(3, 17, 3, 3, 16).permute(2, 0, 3, 1, 4)
    scores = qkv[0] @ qkv[1].transpose(-2, -1) / 4
    expected = (scores.softmax(-1) @ qkv[2]).mean(1)[:, 1:]
    torch.testing.assert_close(features[0][:, 0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_fused_attention_may_stay_on(vit, fused):
    images = torch.randn(2, 3, 32, 32)
    layers = [vit.get_submodule(site.attention) for site in feature_sites(vit)]
    assert layers == [block.attn for block in vit.blocks]
    for layer in layers:
        layer.fused_attn = fused
    features = patch_features(vit, images)
    for layer in layers:
        layer.fused_attn = not fused
    for one, other in zip(features, patch_features(vit, images), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_heads_apart_average_to_heads_together(vit):
    images = torch.randn(2, 3, 32, 32)
    separate = patch_features(vit, images, heads="separate")
    together = patch_features(vit, images)
    assert separate[0].shape == (2, 3, 16, 16)
    torch.testing.assert_close(separate[0].mean(1, keepdim=True), together[0])


def test_swin_windows_belong_to_their_image(swin):
    images = torch.randn(3, 3, 32, 32)
    features = patch_features(swin, images)
    assert [tuple(layer.shape) for layer in features] == [(3, 16, 16, 12)] * 2 + [(3, 4, 16, 12)] * 2
    alone = patch_features(swin, images[1:2])
    torch.testing.assert_close(features[3][1:2], alone[3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "patches"),
    [
        ("deit_tiny_distilled_patch16_224", {"img_size": 64}, 16),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 56}, 16),
        ("vit_base_patch16_siglip_224", {"img_size": 64, "depth": 2, "num_classes": 5}, 16),
    ],
)
def test_only_patches_remain(name, options, patches):
    model = timm.create_model(name, **options).eval()
    features = patch_features(model, torch.randn(1, 3, options["img_size"], options["img_size"]))
    assert {layer.shape[2] for layer in features} == {patches}
    assert len(features) == len(model.blocks)


def test_hooks_go_also_on_an_error(vit):
    with pytest.raises(AssertionError), record_patch_features(vit):
        vit(torch.randn(1, 3, 8, 8))
    assert _hooks(vit) == 0
    patch_features(vit, torch.randn(1, 3, 32, 32))
    assert _hooks(vit) == 0


def test_a_network_without_attention_is_refused():
    with pytest.raises(PsaqError, match="no self-attention"):
        patch_features(nn.Conv2d(3, 3, 3), torch.randn(1, 3, 8, 8))


@torch.no_grad()
def test_a_layer_whose_weight_another_module_multiplies_with_is_seen():
    model = made("torchvision: swin")
    images = images_for(model)
    features = patch_features(model, images)
    assert [tuple(layer.shape) for layer in features] == [(3, 16, 16, 8)] * 2 + [(3, 4, 16, 16)] * 2
    qmodel, _ = converted(model, images)
    for one, other in zip(features, patch_features(qmodel, images), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        ("timm: cait", (1, 16, 16)),  # heads mixed before and after the softmax
        ("timm: mobilevitv2", (1, 64, 64)),  # weighed without a product
        ("timm: xcit", (1, 16, 16)),  # attention between channels
        ("transformers: YOLOS", (1, 16, 16)),  # a class token before, five detection tokens behind
        ("own: linear", (1, 16, 16)),
        ("own: module", (1, 16, 16)),
    ],
)
@torch.no_grad()
def test_features_of_every_make_are_those_of_its_patches(make, shape):
    model = made(make)
    features = patch_features(model, images_for(model))
    assert tuple(features[0].shape) == (3, *shape)

"""Folding and equalising: the logits stay, the ranges become even."""

import copy

import pytest
import timm
import torch
from rescaling import Rescaling
from small_models import running_twice
from timm.layers import LayerNorm2d, RmsNorm
from torch import Tensor, nn
from variants import VARIANTS, build, images_for

from psaq.tasks.classification import logit_sqnr

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
    images = images_for(variant)
    rescaling = Rescaling(build(variant), images)
    model = rescaling.model
    before = model(images)
    rescaling.fold([images], 1.0, centre)
    assert logit_sqnr(model(images), before) > 90
    rescaling.equalize([images], centre)
    assert logit_sqnr(model(images), before) > 90


@pytest.mark.parametrize("variant", ["class token", "distilled", "swin"])
def test_folded_norms_emit_even_channels(variant):
    images = images_for(variant)
    rescaling = Rescaling(build(variant), images)
    model, before = rescaling.model, copy.deepcopy(rescaling.model)
    norms = [found.norm for found in rescaling.norms()]
    assert len(norms) == 4 + 5 * (variant == "swin")
    rescaling.fold([images[:1], images[1:]], 1.0)
    for norm in norms:
        assert spread(extents(model, model.get_submodule(norm), images)) < 1.001
        assert spread(extents(before, before.get_submodule(norm), images)) > 1.5


@pytest.mark.parametrize("part", ["blocks", "norm before a layer", "norm", "layer behind the norm"])
@torch.no_grad()
def test_a_norm_that_runs_twice_is_divided_once(part):
    images = images_for("class token")
    rescaling = Rescaling(running_twice(part), images)
    before = rescaling.model(images)
    rescaling.fold([images], 1.0)
    assert logit_sqnr(rescaling.model(images), before) > 90
    assert [found.norm for found in rescaling.norms()] == (["norm"] if part == "blocks" else [])


class ChannelsFirst(nn.Module):
    """A norm of (images, channels, height, width) before the layer that reads its channels."""

    num_classes = 3

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head = nn.Conv2d(3, 16, 8, 8), LayerNorm2d(16), nn.Linear(16, 3)
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        q, k, v = self.qkv(self.norm(x).flatten(2).mT).chunk(3, -1)
        return self.head(self.proj(nn.functional.scaled_dot_product_attention(q, k, v)).mean(1))


def test_a_norm_of_channels_first_is_folded_by_its_channels():
    torch.manual_seed(3)
    model, images = ChannelsFirst().eval(), torch.randn(4, 3, 24, 24)
    nn.init.normal_(model.norm.weight, 1, 0.5)
    rescaling = Rescaling(model, images)
    before = rescaling.model(images)
    rescaling.fold([images], 1.0, True)
    assert logit_sqnr(rescaling.model(images), before) > 90
    seen = []
    rescaling.model.norm.register_forward_hook(lambda _, __, output: seen.append(output.abs().amax((0, 2, 3))))
    rescaling.model(images)
    assert spread(seen[0]) < 1.001


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
    images = images_for(variant)
    rescaling = Rescaling(build(variant), images)
    model = rescaling.model
    rescaling.fold([images], 0.5, centre=True)
    rescaling.equalize([images], centre=True)
    for found in rescaling.norms():
        assert middles(model, model.get_submodule(found.norm), images).abs().max() < 1e-4
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
    images = torch.randn(3, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    rescaling = Rescaling(model.eval(), images)
    model = rescaling.model
    padded = {found.norm for found in rescaling.norms() if found.padded}
    assert padded == {"layers.0.blocks.0.norm1", "layers.0.blocks.1.norm1"}
    before = model(images)
    rescaling.fold([images], 1.0, centre=True)
    assert logit_sqnr(model(images), before) > 90


def test_half_the_strength_leaves_half_of_the_spread():
    images = images_for("class token")
    rescaling = Rescaling(build("class token"), images)
    model, norm = rescaling.model, rescaling.model.blocks[0].norm1
    before = extents(model, norm, images)
    rescaling.fold([images], 0.5)
    assert spread(extents(model, norm, images)) == pytest.approx(spread(before) ** 0.5, rel=1e-3)


@pytest.mark.parametrize("variant", PLAIN)
def test_equalised_attention_has_even_channels(variant):
    images = images_for(variant)
    rescaling = Rescaling(build(variant), images)
    model = rescaling.model
    rescaling.equalize([images[:2], images[2:]])
    layers = [module.qkv for module in model.modules() if hasattr(module, "qkv")]
    assert len(layers) >= 2
    for qkv in layers:
        query, key, value = extents(model, qkv, images).chunk(3)
        ratio = query / key
        assert spread(ratio) < 1.001
        assert spread(value) < 1.001


@pytest.mark.parametrize("variant", ["layer scale, query-key norm", "attention and MLP norm"])
def test_attention_with_norms_inside_is_left_alone(variant):
    images = images_for(variant)
    rescaling = Rescaling(build(variant), images)
    before = copy.deepcopy(rescaling.model.state_dict())
    assert rescaling.attentions() == []
    rescaling.equalize([images])
    assert all(torch.equal(tensor, before[name]) for name, tensor in rescaling.model.state_dict().items())


@pytest.mark.parametrize("variant", ["class token", "swin"])
@torch.no_grad()
def test_a_qkv_without_bias_is_equalised(variant):
    model, images = build(variant), images_for(variant)
    for module in model.modules():
        if hasattr(module, "qkv"):
            module.qkv.bias = None
    rescaling = Rescaling(model, images)
    model = rescaling.model
    before = model(images)
    rescaling.fold([images], 1.0, centre=True)
    rescaling.equalize([images], centre=True)
    assert logit_sqnr(model(images), before) > 90


@torch.no_grad()
def test_a_root_mean_square_norm_is_folded(vit):
    for block in vit.blocks:
        block.norm2 = RmsNorm(48)
        nn.init.uniform_(block.norm2.weight, 0.2, 2)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rescaling = Rescaling(vit, images)
    model = rescaling.model
    before = model(images)
    rescaling.fold([images], 1.0, centre=True)
    assert spread(extents(model, model.blocks[1].norm2, images)) < 1.001
    assert logit_sqnr(model(images), before) > 90


@torch.no_grad()
def test_a_channel_that_is_always_zero_keeps_a_factor(vit):
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rescaling = Rescaling(vit, images)
    model = rescaling.model
    norm, qkv = model.blocks[0].norm1, model.blocks[0].attn.qkv
    norm.weight[3], norm.bias[3] = 0, 0
    qkv.weight[5], qkv.bias[5] = 0, 0  # a query channel
    qkv.weight[-1], qkv.bias[-1] = 0, 0  # a value channel
    before = model(images)
    rescaling.fold([images], 1.0)
    rescaling.equalize([images])
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert logit_sqnr(model(images), before) > 90

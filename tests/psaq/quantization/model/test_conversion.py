"""A converted model computes what the model computes, has the authors' points, and the rest is refused by name."""

import copy
from collections import Counter

import pytest
import timm
import torch
from timm.models.vision_transformer import ParallelScalingBlock
from torch import nn
from variants import VARIANTS, build, images_for

from psaq.errors import PsaqError
from psaq.evaluation import logit_sqnr
from psaq.models.features import patch_features
from psaq.quantization.model.conversion import converted
from psaq.quantization.model.points import Point, all_points, live_points, points_in_scope, weight_points
from psaq.quantization.passes.folding import fold_norms
from psaq.quantization.passes.rotation import rotate_heads, rotate_streams


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_with_every_point_off_nothing_changes(variant):
    model, images = build(variant), images_for(variant)
    assert torch.equal(converted(model)(images), model(images))


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_written_out_it_computes_the_same(variant):
    model, images = build(variant), images_for(variant)
    qmodel = converted(model)
    for name in all_points(qmodel):
        qmodel.set_submodule(name, nn.Identity())  # no Point: takes the place of a quantiser
    torch.testing.assert_close(qmodel(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_model_itself_is_left_alone(variant):
    model = build(variant)
    types = [type(module) for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    qmodel = converted(model)
    assert [type(module) for module in model.modules()] == types
    assert qmodel.state_dict().keys() == before.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert qmodel.state_dict()[name].data_ptr() != tensor.data_ptr()


def test_an_image_of_another_size_fits_where_the_model_takes_it():
    model = build("any image size")
    images = torch.randn(2, 3, 48, 40)
    with torch.no_grad():
        assert torch.equal(converted(model)(images), model(images))


def in_scope(model: nn.Module, scope: str) -> list[str]:
    return points_in_scope(all_points(converted(model)), scope)


def per_block(names: list[str], block: str) -> list[str]:
    return [name.removeprefix(f"{block}.") for name in names if name.startswith(f"{block}.")]


def test_the_authors_quantise_ten_activations_per_deit_block_and_seven_around():
    names = in_scope(build("class token"), "all")
    assert per_block(names, "blocks.1") == [
        "residual1",
        "residual2",
        "attn.scores",
        "attn.qkv.input",
        "attn.qkv.output",
        "attn.proj.input",
        "attn.proj.output",
        "mlp.fc1.input",
        "mlp.fc2.input",
        "mlp.fc2.output",
    ]
    assert [name for name in names if not name.startswith("blocks")] == [
        "tokens",
        "position_embedding",
        "embedded",
        "patch_embed.proj.input",
        "patch_embed.proj.output",
        "head.input",
        "head.output",
    ]


def test_the_authors_quantise_twelve_activations_per_swin_block():
    names = in_scope(build("swin"), "all")
    blocks = Counter(name.rsplit("blocks.", 1)[0] + name.split("blocks.")[1][0] for name in names if "blocks." in name)
    assert set(blocks.values()) == {12}
    assert per_block(names, "layers.1.blocks.0.attn") == [
        "scores",
        "bias_table",
        "biased_scores",
        "qkv.input",
        "qkv.output",
        "proj.input",
        "proj.output",
    ]
    assert [name for name in names if "blocks" not in name] == [
        "embedded",
        "features",
        "patch_embed.proj.input",
        "patch_embed.proj.output",
        "layers.1.downsample.reduction.input",
        "layers.1.downsample.reduction.output",
        "head.fc.input",
        "head.fc.output",
    ]


def test_matmul_takes_every_operand_of_every_product():
    names = per_block(in_scope(build("class token"), "matmul"), "blocks.0")
    assert sorted(names) == [
        "attn.key",
        "attn.probabilities",
        "attn.proj.input",
        "attn.qkv.input",
        "attn.query",
        "attn.value",
        "mlp.fc1.input",
        "mlp.fc2.input",
    ]


@pytest.mark.parametrize("variant", VARIANTS)
def test_linear_takes_the_input_of_every_layer_with_a_weight(variant):
    model = build(variant)
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    assert {name.removesuffix(".input") for name in in_scope(model, "linear")} == layers
    weights = weight_points(all_points(converted(model)))
    assert {name.removesuffix(".weight_quantizer") for name in weights} == layers


def test_points_start_switched_off():
    qmodel = converted(build("swin"))
    assert live_points(qmodel) == {}
    assert all(isinstance(point, Point) for point in all_points(qmodel).values())


def test_a_converted_model_still_shows_its_patch_features(vit):
    images = torch.randn(2, 3, 32, 32)
    for one, other in zip(patch_features(vit, images), patch_features(converted(vit), images), strict=True):
        assert torch.equal(one, other)


def test_a_mask_is_refused_where_attention_is_quantised(vit):
    qmodel = converted(vit)
    mask = torch.zeros(1, 1, 17, 17)
    qmodel(torch.randn(1, 3, 32, 32), attn_mask=mask)
    qmodel.set_submodule("blocks.0.attn.scores", nn.Identity())
    with pytest.raises(PsaqError, match="without a mask"):
        qmodel(torch.randn(1, 3, 32, 32), attn_mask=mask)


def test_a_block_of_another_kind_is_refused_by_name():
    model = build("class token")
    model.blocks[0] = ParallelScalingBlock(32, 2)
    with pytest.raises(PsaqError, match=r"'blocks\.0'.*ParallelScalingBlock"):
        converted(model)


def test_another_swin_is_refused_by_name():
    model = timm.create_model("swinv2_cr_tiny_224", img_size=64, embed_dim=16, depths=(1, 1), num_heads=(2, 2))
    with pytest.raises(PsaqError, match="SwinTransformerV2Cr"):
        converted(model)


def test_a_layer_of_ones_own_is_refused_by_name(vit):
    class Own(nn.Linear):
        pass

    vit.blocks[1].mlp.fc2 = Own(192, 48)
    with pytest.raises(PsaqError, match=r"'blocks\.1\.mlp\.fc2'.*Own"):
        converted(vit)


def test_a_model_without_attention_is_refused():
    with pytest.raises(PsaqError, match="no self-attention"):
        converted(nn.Sequential(nn.Linear(3, 3)))


def test_a_quantised_model_is_not_quantised_again(vit):
    with pytest.raises(PsaqError, match="QuantVisionTransformer"):
        converted(converted(vit))


@torch.no_grad()
@pytest.mark.parametrize("shared", ["block", "mlp", "norm", "weight"])
def test_what_is_shared_gets_a_copy_in_every_place(vit, shared):
    first, second = vit.blocks[0], vit.blocks[1]
    if shared == "block":
        vit.blocks[1] = first
    if shared == "mlp":
        second.mlp = first.mlp
    if shared == "norm":
        second.norm1 = first.norm1
    if shared == "weight":
        second.attn.qkv.weight = first.attn.qkv.weight
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before, model = vit(x), converted(vit)
    assert len(list(model.parameters())) == len(list(model.named_parameters(remove_duplicate=False)))
    torch.testing.assert_close(model(x), before)
    rotate_streams(model)
    rotate_heads(model)
    fold_norms(model, [x], 1.0, centre=True)
    assert logit_sqnr(model(x), before) > 90


def test_a_quantised_model_is_refused_by_name():
    with pytest.raises(PsaqError, match="QuantVisionTransformer: is quantised already; pass the model"):
        converted(converted(build("class token")))

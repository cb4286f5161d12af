"""A converted model computes what the model computes, whoever wrote it, and has the authors' points."""

import copy
from collections import Counter

import pytest
import timm
import torch
from rescaling import Rescaling
from timm.models.vision_transformer import ParallelScalingBlock
from torch import Tensor, nn
from variants import VARIANTS, build, images_for

from psaq.errors import PsaqError
from psaq.models.features import patch_features
from psaq.quantization.model.conversion import converted
from psaq.quantization.model.points import Point, all_points, live_points, points_in_scope, weight_points
from psaq.tasks.classification import logit_sqnr


def copied(model: nn.Module, images: Tensor | None = None) -> nn.Module:
    return converted(model, torch.zeros(1, 3, 32, 32) if images is None else images)[0]


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_with_every_point_off_nothing_changes(variant):
    model, images = build(variant), images_for(variant)
    assert torch.equal(copied(model, images)(images), model(images))


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_written_out_it_computes_the_same(variant):
    model, images = build(variant), images_for(variant)
    qmodel = copied(model, images)
    for name in all_points(qmodel):
        qmodel.set_submodule(name, nn.Identity())  # no Point: takes the place of a quantiser
    torch.testing.assert_close(qmodel(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_model_itself_is_left_alone(variant):
    model = build(variant)
    types = [type(module) for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    qmodel = copied(model, images_for(variant))
    assert [type(module) for module in model.modules()] == types
    assert qmodel.state_dict().keys() == before.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert qmodel.state_dict()[name].data_ptr() != tensor.data_ptr()


def test_an_image_of_another_size_fits_where_the_model_takes_it():
    model = build("any image size")
    images = torch.randn(2, 3, 48, 40)
    with torch.no_grad():
        assert torch.equal(copied(model)(images), model(images))


def in_scope(variant: str, scope: str) -> list[str]:
    return points_in_scope(copied(build(variant), images_for(variant)), scope)


def per_block(names: list[str], block: str) -> list[str]:
    return [name.removeprefix(f"{block}.") for name in names if name.startswith(f"{block}.")]


def test_the_authors_quantise_ten_activations_per_deit_block_and_seven_around():
    names = in_scope("class token", "all")
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
    names = in_scope("swin", "all")
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
        "patch_embed.proj.input",
        "patch_embed.proj.output",
        "patch_embed.norm.output",
        "layers.1.downsample.reduction.input",
        "layers.1.downsample.reduction.output",
        "norm.output",
        "head.fc.input",
        "head.fc.output",
    ]


def test_matmul_takes_every_operand_of_every_product():
    names = per_block(in_scope("class token", "matmul"), "blocks.0")
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
    assert {name.removesuffix(".input") for name in in_scope(variant, "linear")} == layers
    weights = weight_points(copied(model, images_for(variant)))
    assert {name.removesuffix(".weight_quantizer") for name in weights} == layers


def test_points_start_switched_off():
    qmodel = copied(build("swin"))
    assert live_points(qmodel) == {}
    assert all(isinstance(point, Point) for point in all_points(qmodel).values())


def test_a_converted_model_still_shows_its_patch_features(vit):
    images = torch.randn(2, 3, 32, 32)
    for one, other in zip(patch_features(vit, images), patch_features(copied(vit), images), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", [torch.bool, torch.float32], ids=str)
@torch.no_grad()
def test_what_a_mask_blocks_stays_blocked_where_attention_is_quantised(vit, kind):
    """No patch looks at the last one: the answer does not depend on what is in it."""
    mask = torch.ones(1, 1, 17, 17, dtype=torch.bool)
    mask[..., :-1, -1] = False
    mask = mask if kind == torch.bool else torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    others = images.clone()
    others[..., 24:, 24:] += 1
    qmodel = copied(vit)
    torch.testing.assert_close(qmodel(images, attn_mask=mask), vit(images, attn_mask=mask), rtol=0, atol=0)
    for name in points_in_scope(qmodel, "matmul"):
        qmodel.set_submodule(name, nn.Identity())
    torch.testing.assert_close(qmodel(images, attn_mask=mask), vit(images, attn_mask=mask), rtol=1e-4, atol=1e-5)
    assert torch.equal(qmodel(images, attn_mask=mask), qmodel(others, attn_mask=mask))
    assert not torch.allclose(qmodel(images), qmodel(others), atol=1e-3)


@torch.no_grad()
def assert_computes_the_same(model: nn.Module, images: Tensor, layers: set[str]) -> list[str]:
    """Also written out, and with points at ``layers`` at least; returns all points of activations."""
    qmodel, expected = copied(model, images), model(images)
    assert torch.equal(qmodel(images), expected)
    assert layers <= {name.removesuffix(".weight_quantizer") for name in weight_points(qmodel)}
    assert layers <= {name.removesuffix(".input") for name in points_in_scope(qmodel, "linear")}
    for name in all_points(qmodel):
        qmodel.set_submodule(name, nn.Identity())
    torch.testing.assert_close(qmodel(images), expected, rtol=1e-4, atol=1e-5)
    return points_in_scope(qmodel, "matmul")


def test_a_block_of_another_kind_has_points_like_any_other():
    torch.manual_seed(0)
    model = build("class token")
    model.blocks[0] = ParallelScalingBlock(32, 2).eval()
    layers = {f"blocks.0.{name}" for name in ("in_proj", "attn_out_proj", "mlp_out_proj")}
    points = assert_computes_the_same(model, images_for("class token"), layers)
    assert {f"blocks.0.{name}" for name in ("query", "key", "probabilities", "value")} <= set(points)


def test_another_swin_has_points_in_its_attention():
    torch.manual_seed(0)
    options = {"img_size": 64, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2)}
    model = timm.create_model("swinv2_cr_tiny_224", **options).eval()
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    points = assert_computes_the_same(model, images, {name for name in layers if "meta_mlp" not in name})
    for stage in (0, 1):
        attention = f"stages.{stage}.blocks.0.attn"
        assert {f"{attention}.{name}" for name in ("query", "key", "probabilities", "value")} <= set(points)


@torch.no_grad()
def test_a_layer_of_ones_own_is_quantised_as_it_calls_the_framework(vit):
    class Own(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(2 * x, self.weight, self.bias)

    torch.manual_seed(0)
    vit.blocks[1].mlp.fc2 = Own(192, 48)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert_computes_the_same(vit, images, {"blocks.1.mlp.fc2"})
    qmodel, seen, called_with = copied(vit), [], []
    layer = qmodel.blocks[1].mlp.fc2
    layer.register_forward_pre_hook(lambda _, inputs: called_with.append(inputs[0]))
    layer.input.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    qmodel(images)
    assert torch.equal(seen[0], 2 * called_with[0]), "what the product is taken of, not what the layer is called with"


def test_a_model_without_attention_is_refused():
    with pytest.raises(PsaqError, match="no self-attention"):
        copied(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3)))


def _as_it_was(_: nn.Module, __: object, output: Tensor) -> Tensor:
    """What it is given, by way of a sum, a concatenation and a product."""
    joined = torch.cat([output + torch.zeros_like(output), output])[: len(output)]
    return joined + 0 * (joined[..., :1] @ joined[..., :1].mT).sum()


@pytest.mark.parametrize("name", ["patch_embed", "blocks.0", "blocks.0.norm1", "blocks.0.attn.qkv", "blocks.1.mlp.act"])
@torch.no_grad()
def test_what_a_hook_computes_is_not_taken_for_the_models(vit, name):
    qmodel, images = copied(vit), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for point in all_points(qmodel):
        qmodel.set_submodule(point, nn.Identity())
    seen: dict[str, Tensor] = {}
    for point, module in all_points(qmodel).items():
        module.register_forward_hook(lambda _, inputs, __, point=point: seen.update({point: inputs[0]}))
    logits = qmodel(images)
    before = dict(seen)
    qmodel.get_submodule(name).register_forward_hook(_as_it_was)
    assert torch.equal(qmodel(images), logits)
    assert seen.keys() == before.keys()
    assert all(torch.equal(tensor, before[point]) for point, tensor in seen.items())


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
    before, rescaling = vit(x), Rescaling(vit, x)
    model = rescaling.model
    assert len(list(model.parameters())) == len(list(model.named_parameters(remove_duplicate=False)))
    torch.testing.assert_close(model(x), before)
    rescaling.rotate_streams()
    rescaling.rotate_heads()
    rescaling.fold([x], 1.0, centre=True)
    assert logit_sqnr(model(x), before) > 90


def test_a_quantised_model_is_refused_by_name():
    with pytest.raises(PsaqError, match="VisionTransformer: is quantised already; pass the model"):
        copied(copied(build("class token")))

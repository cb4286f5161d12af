"""Calibration against a forward written out by hand, and everything that may be wrong with its input."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psaq import PsaqError
from psaq.quantization.model.points import live_points, points_in_scope, weight_points
from psaq.quantization.pipeline import quantize
from psaq.quantization.quantizers.affine import AffineQuantizer
from psaq.quantization.recipes import Recipe, parse_precision
from psaq.tasks.classification import logit_sqnr

Quantise = Callable[[str, Tensor], Tensor]


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def settle(model: nn.Module) -> None:
    """Make a model's logits change little where one rounding does: attention less sharp than the fixtures', and
    a class token not drowned by the range of the patches."""
    for name, parameter in model.named_parameters():
        if name.endswith("qkv.weight"):
            parameter.data.div_(10)
        if name == "cls_token":
            nn.init.normal_(parameter)


def by_hand(vit: nn.Module, images: Tensor, weight: Callable[[Tensor], Tensor], quantise: Quantise) -> Tensor:
    """A ViT with a class token, the authors' 10 points per block and 7 around it."""

    def linear(layer: nn.Linear, x: Tensor) -> Tensor:
        return F.linear(x, weight(layer.weight), layer.bias)

    patches = F.conv2d(quantise("input", images), weight(vit.patch_embed.proj.weight), vit.patch_embed.proj.bias, 8)
    x = quantise("patches", patches).flatten(2).transpose(1, 2)
    x = quantise("with class token", torch.cat([vit.cls_token.expand(len(x), -1, -1), x], 1))
    x = quantise("sum", x + quantise("position", vit.pos_embed))
    for index, block in enumerate(vit.blocks):
        y = quantise(f"{index} norm1", block.norm1(x))
        y = quantise(f"{index} qkv", linear(block.attn.qkv, y))
        q, k, v = (part.unflatten(2, (3, 16)).transpose(1, 2) for part in y.chunk(3, dim=2))
        scores = quantise(f"{index} scores", q @ k.transpose(2, 3) / math.sqrt(16))
        y = quantise(f"{index} attended", (scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        y = quantise(f"{index} proj", linear(block.attn.proj, y))
        x = quantise(f"{index} sum 1", x + y)
        y = linear(block.mlp.fc1, quantise(f"{index} norm2", block.norm2(x)))
        y = linear(block.mlp.fc2, quantise(f"{index} gelu", F.gelu(y)))
        x = quantise(f"{index} sum 2", x + quantise(f"{index} fc2", y))
    return quantise("logits", linear(vit.head, quantise("class", vit.norm(x)[:, 0])))


@torch.no_grad()
def expected_logits(vit: nn.Module, images: Tensor, weights: int, activations: int, faithful: bool) -> Tensor:
    ranges: dict[str, tuple[Tensor, Tensor]] = {}

    def observe(name: str, x: Tensor) -> Tensor:
        ranges[name] = (x.min(), x.max())
        return x

    def quantise(name: str, x: Tensor) -> Tensor:
        low, high = ranges[name] if faithful else (ranges[name][0].clamp(max=0), ranges[name][1].clamp(min=0))
        levels = 2**activations - 1
        scale = (high - low) / levels
        zero = (-(low / scale).round()).clamp(0, levels)
        return ((x * scale.reciprocal()).round() + zero).clamp(0, levels).sub(zero) * scale

    def quantise_weight(w: Tensor) -> Tensor:
        half = 2 ** (weights - 1)
        scale = w.flatten(1).abs().amax(1) / ((2 * half - 1) / 2)
        scale = scale.view(-1, *[1] * (w.ndim - 1))
        return (w * scale.reciprocal()).round().clamp(-half, half - 1) * scale

    by_hand(vit, images, lambda w: w, observe)
    assert len(ranges) == 7 + 10 * 2
    return by_hand(vit, images, quantise_weight, quantise)


@pytest.mark.parametrize("faithful", [True, False])
@pytest.mark.parametrize(("weights", "activations"), [(8, 8), (4, 8), (3, 6)])
def test_the_paper_recipe_is_what_the_paper_does(vit, images, weights, activations, faithful):
    settle(vit)
    qmodel = quantize(vit, images, Recipe.paper(weights, activations, faithful=faithful))
    expected = expected_logits(vit, images, weights, activations, faithful)
    with torch.no_grad():
        assert logit_sqnr(qmodel(images), expected) > 60
        assert logit_sqnr(vit(images), expected) < 55, "the oracle must quantise visibly"


@pytest.mark.parametrize("scope", ["all", "matmul", "linear"])
@pytest.mark.parametrize("name", ["vit", "swin"])
def test_what_is_in_scope_is_quantised_and_nothing_else(name, scope, images, request):
    qmodel = quantize(request.getfixturevalue(name), images, Recipe.paper(4, 6, scope))
    live = live_points(qmodel)
    assert live.keys() == {*points_in_scope(qmodel, scope), *weight_points(qmodel)}
    for point_name, point in live.items():
        assert isinstance(point, AffineQuantizer)
        assert point.bits == (4 if point_name.endswith("weight_quantizer") else 6)


@pytest.mark.parametrize("scope", ["all", "matmul", "linear"])
@pytest.mark.parametrize("name", ["vit", "swin"])
@torch.no_grad()
def test_more_bits_cost_less(name, scope, images, request):
    model = request.getfixturevalue(name)
    settle(model)
    reference = model(images)
    errors = [logit_sqnr(quantize(model, images, Recipe.paper(b, b, scope))(images), reference) for b in (4, 6, 8)]
    assert errors[0] < errors[1] < errors[2]
    assert errors[2] > 20


def test_batches_together_give_the_range_of_all(vit, images):
    whole = quantize(vit, images, Recipe.paper())
    in_batches = quantize(vit, [images[:1], images[1:]], Recipe.paper(), batch_size=2)
    for name, point in live_points(whole).items():
        torch.testing.assert_close(point.scale, live_points(in_batches)[name].scale, rtol=1e-4, atol=0)


def test_the_model_is_left_untouched(vit, images):
    before, output = copy.deepcopy(vit.state_dict()), vit(images)
    quantize(vit, images, Recipe.paper(2, 2))
    assert torch.equal(vit(images), output)
    assert all(torch.equal(tensor, before[name]) for name, tensor in vit.state_dict().items())


def test_quantising_is_deterministic(swin, images):
    one, other = (quantize(swin, images, Recipe.paper(4, 8)) for _ in range(2))
    assert torch.equal(one(images), other(images))


def test_one_can_train_through_a_quantised_model(vit, images):
    qmodel = quantize(vit, images, Recipe.paper(4, 8))
    optimiser = torch.optim.SGD(qmodel.parameters(), lr=0.5)
    labels = torch.tensor([0, 1, 2, 3])
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(qmodel(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(parameter.grad is not None for parameter in qmodel.parameters())
    assert losses[-1] < losses[0]


def test_an_attention_that_is_quantised_does_not_hide_in_a_fused_kernel(vit, images):
    for block in vit.blocks:
        block.attn.fused_attn = True
    qmodel = quantize(vit, images, Recipe.paper(8, 2, "matmul"))
    coarse = live_points(qmodel)["blocks.0.attn.probabilities"]
    seen = []
    coarse.register_forward_hook(lambda _, inputs, output: seen.append(output.unique().numel()))
    qmodel(images)
    assert seen[0] <= 4


def test_constant_activations_are_quantised(vit, images):
    nn.init.zeros_(vit.blocks[0].attn.qkv.weight)
    nn.init.zeros_(vit.blocks[0].attn.qkv.bias)
    nn.init.zeros_(vit.head.weight[3:4])
    for faithful in (True, False):
        assert quantize(vit, images, Recipe.paper(4, 4, faithful=faithful))(images).isfinite().all()
    assert quantize(vit, torch.zeros_like(images), Recipe.paper())(torch.zeros_like(images)).isfinite().all()


def test_a_weight_that_is_nan_is_named(vit, images):
    vit.blocks[1].mlp.fc1.weight.data[3, 2] = torch.nan
    with pytest.raises(PsaqError, match=r"blocks\.1\.mlp\.fc1\.weight.*NaN"):
        quantize(vit, images, Recipe.paper())


def test_an_activation_that_overflows_is_named(vit, images):
    vit.blocks[1].mlp.fc1.weight.data.fill_(3e38)
    with pytest.raises(PsaqError, match=r"blocks\.1\.\w+.*infinite"):
        quantize(vit, images, Recipe.paper())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(0, 3, 32, 32), "0 images"),
        ([], "0 images"),
        (torch.zeros(2, 3, 40, 40), "40"),
        (torch.zeros(2, 1, 32, 32), "(2, 1, 32, 32)"),
        (torch.full((2, 3, 32, 32), torch.nan), "NaN"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "uint8"),
        (["a.png"], "a batch must be a tensor"),
        ([torch.zeros(2, 3, 32, 32), torch.zeros(2, 3, 24, 32)], "(24, 32) and (32, 32) pixels"),
    ],
)
def test_wrong_images_are_named(vit, wrong, message):
    with pytest.raises(PsaqError) as raised:
        quantize(vit, wrong, Recipe.paper())
    assert message in str(raised.value)


@pytest.mark.parametrize("options", [{"weights": 1}, {"weights": 9}, {"activations": 1}, {"activations": 16}])
def test_bits_out_of_range_are_named(options):
    with pytest.raises(PsaqError, match=next(iter(options))):
        Recipe.paper(**options)


def test_an_unknown_scope_is_named():
    with pytest.raises(PsaqError, match=r"'everything'.*matmul"):
        Recipe.paper(scope="everything")


def test_what_is_no_recipe_is_named(vit, images):
    with pytest.raises(PsaqError, match=r"'W4A8'.*psaq\.Recipe"):
        quantize(vit, images, "W4A8")


def test_recipes_read_as_the_field_writes_them():
    assert str(Recipe.paper(4, 8)) == "W4A8 (all)"
    assert str(Recipe.paper(8, 8, "linear", faithful=True)) == "W8A8 (linear, faithful)"
    assert parse_precision("w4a8") == (4, 8)
    for wrong in ("4/8", "W4", "WxA8", "W4A8B2"):
        with pytest.raises(PsaqError, match="W4A8"):
            parse_precision(wrong)


@pytest.mark.parametrize("recipe", [Recipe.paper(4, 8), Recipe.accurate(4, 8)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_of_another_type_takes_images_of_any(vit, images, recipe, dtype):
    model = copy.deepcopy(vit).to(dtype)
    with torch.no_grad():
        expected, found = quantize(vit, images, recipe)(images), quantize(model, images, recipe)(images.to(dtype))
    assert found.dtype == dtype
    assert logit_sqnr(found.float(), expected) > 10


class Mixed(nn.Module):
    """Its first parameters are of half the size of the others."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 3, 1).bfloat16(), body

    def forward(self, images: Tensor) -> Tensor:
        return self.body(self.stem(images.to(self.stem.weight.dtype)).float())


@torch.no_grad()
def test_a_model_of_mixed_types_keeps_the_widest(vit, images):
    model, images = Mixed(vit).eval(), images.bfloat16().float()
    wide = copy.deepcopy(model).float()
    qmodel, expected = (quantize(each, images, Recipe.paper(8, 8)) for each in (model, wide))
    assert {parameter.dtype for parameter in qmodel.parameters()} == {torch.float32}
    assert torch.equal(qmodel(images), expected(images))

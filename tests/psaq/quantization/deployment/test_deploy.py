"""Deployed models: the same bits as the fake-quantised ones, in really few bits of weight."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from makes import images_for, made
from repeats import also
from small_models import running_twice
from sqnr import usual_sqnr
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from psaq import (
    IntegerModel,
    PsaqError,
    Recipe,
    SceneDataset,
    capture,
    deploy,
    evaluate,
    load,
    load_model,
    quantize,
    save,
    simulate,
)
from psaq.models.answers import Answering
from psaq.models.features import patch_features
from psaq.models.heads import classes_or_none
from psaq.quantization.deployment import deploy as deploy_module
from psaq.quantization.deployment.deploy import _summarised
from psaq.quantization.deployment.integer import IntegerLayerNorm, IntegerLinear, IntegerPatchEmbedding
from psaq.quantization.model.points import live_points
from psaq.quantization.model.watching import Watched
from psaq.tasks.classification import logit_sqnr
from psaq_kernels.processor import largest_exact_weight

products_of_bytes = pytest.mark.skipif(largest_exact_weight() == 0, reason="oneDNN has no product of bytes here")
sums_saturate = pytest.mark.skipif(largest_exact_weight() == 128, reason="this processor sums all products of bytes")


def images(count: int = 6, size: int = 32, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["vit", "swin"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("weights", [8, 4, *also(6)])
@pytest.mark.parametrize("scope", ["linear", "matmul", "all"])
@torch.no_grad()
def test_the_deployed_model_computes_the_same_bits(model: nn.Module, weights: int, scope: Any) -> None:
    qmodel = quantize(model, images(), Recipe.paper(weights=weights, scope=scope))
    x = images(5, seed=2)
    assert torch.equal(deploy(qmodel, torch.float32, "exact")(x), qmodel(x))


@pytest.mark.parametrize("name", ["micro_vit", "micro_swin"])
@pytest.mark.parametrize("weights", [*also(8), 4])
@pytest.mark.parametrize("scope", ["linear", "all"])
@torch.no_grad()
def test_bundled_models_agree_on_scenes(name: str, weights: int, scope: Any) -> None:
    model = load_model(name)
    scenes = SceneDataset(48, 7, model)
    x = torch.stack([scenes[index][0] for index in range(len(scenes))])
    qmodel = quantize(model, x[:16], Recipe.paper(weights=weights, scope=scope))
    found, expected = deploy(qmodel, torch.float32, "exact")(x), qmodel(x)
    assert (found.argmax(1) == expected.argmax(1)).all()
    assert logit_sqnr(found, expected) >= 45


@pytest.mark.parametrize("group", [None, 32], ids=["bytes", "floats"])
@pytest.mark.parametrize("backend", ["exact", "onednn"])
@torch.no_grad()
def test_no_image_has_no_answer(vit: nn.Module, backend: Any, group: int | None) -> None:
    qmodel = quantize(vit, images(), Recipe.accurate(4, 8, group=group, flat_copies=0))
    assert deploy(qmodel, torch.float32, backend)(images()[:0]).shape == (0, 10)


@pytest.mark.parametrize("activations", [4, 7])
@torch.no_grad()
def test_activations_of_fewer_bits_use_the_next_container(model: nn.Module, activations: int) -> None:
    qmodel = quantize(model, images(), Recipe.paper(weights=8, activations=activations, scope="linear"))
    assert torch.equal(deploy(qmodel, torch.float32, "exact")(images(seed=2)), qmodel(images(seed=2)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_costs_little_beside_quantisation(model: nn.Module, dtype: torch.dtype) -> None:
    qmodel, x = quantize(model, images(), Recipe.paper(scope="linear")), images(32, seed=2)
    logits = deploy(qmodel, dtype)(x)
    assert logits.dtype == dtype
    assert logit_sqnr(logits.float(), model(x)) > logit_sqnr(qmodel(x), model(x)) - 3


@torch.no_grad()
def test_a_saved_and_loaded_model_deploys_to_the_same_bits(model: nn.Module, tmp_path: Path) -> None:
    qmodel = quantize(model, images(), Recipe.paper(weights=4, scope="linear"))
    save(qmodel, tmp_path / "model.safetensors")
    before, after = deploy(qmodel), deploy(load(tmp_path / "model.safetensors", model))
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, after.state_dict()[name]), name
    assert torch.equal(after(images()), before(images()))


@pytest.mark.parametrize(("weights", "bits"), [(8, 8), (5, 8), (4, 4), (3, 4)])
def test_weights_take_their_bits_in_memory(vit: nn.Module, weights: int, bits: int) -> None:
    fast = deploy(quantize(vit, images(), Recipe.paper(weights=weights, scope="linear")))
    linears = [module for module in fast.modules() if isinstance(module, IntegerLinear)]
    elements = sum(p.numel() for name, p in vit.named_parameters() if name.endswith(("proj.weight", "qkv.weight")))
    elements += sum(p.numel() for name, p in vit.named_parameters() if "fc" in name and name.endswith("weight"))
    elements += vit.head.weight.numel()
    assert sum(linear.values.nbytes for linear in linears) == elements * bits // 8
    assert not any(parameter.ndim == 2 for parameter in fast.parameters()), "a weight is left in float"


@pytest.mark.parametrize(
    ("weights", "backend", "level"),
    [
        (8, "exact", torch.int8),
        pytest.param(4, "onednn", torch.uint8, marks=products_of_bytes),
        pytest.param(8, "onednn", torch.float32, marks=sums_saturate),
    ],
)
def test_levels_flow_where_one_layer_feeds_another(
    model: nn.Module, weights: int, backend: Any, level: torch.dtype
) -> None:
    fast = deploy(quantize(model, images(), Recipe.paper(weights, scope="linear")), backend=backend)
    kinds: dict[str, torch.dtype] = {}
    for name, module in fast.model.named_modules():
        module.register_forward_hook(lambda _, __, out, name=name: kinds.update({name: out.dtype}))
    fast(images())
    emitting = {name for name, kind in kinds.items() if kind == level}
    blocks = [name for name in kinds if name.endswith(".mlp")]
    assert len(blocks) >= 2
    for block in (name.removesuffix(".mlp") for name in blocks):
        assert {f"{block}.norm1", f"{block}.norm2", f"{block}.mlp.fc1", f"{block}.mlp.act"} <= emitting
    assert all(kinds[block] == torch.float32 for block in blocks)
    joined = [module for module in fast.modules() if isinstance(module, IntegerLinear) and module.reads_levels]
    assert len(joined) >= 3 * len(blocks)


def test_every_linear_layer_and_the_patch_embedding_are_integer(model: nn.Module) -> None:
    fast = deploy(quantize(model, images(), Recipe.paper(scope="linear")))
    assert isinstance(fast.model.patch_embed.proj, IntegerPatchEmbedding)
    assert not any(isinstance(module, nn.Linear | nn.Conv2d) for module in fast.modules())
    assert any(isinstance(module, IntegerLayerNorm) for module in fast.modules())


def test_repr_lists_the_points_left_fake_quantised(vit: nn.Module) -> None:
    linear = deploy(quantize(vit, images(), Recipe.paper(scope="linear")))
    assert linear.simulated == []
    assert "fake-quantised: none" in repr(linear)
    everything = deploy(quantize(vit, images(), Recipe.paper(scope="all")))
    assert "blocks.*.residual1 (2)" in repr(everything)
    assert set(everything.simulated) == {
        name for name in live_points(quantize(vit, images(), Recipe.paper(scope="all")))
        if not name.endswith((".input", "weight_quantizer"))
    }  # fmt: skip
    assert "W8A8 (all) in torch.float32" in repr(everything)
    assert ("multiplied in float32" in repr(everything)) == (largest_exact_weight() < 128)
    assert "multiplied in float32" not in repr(
        deploy(quantize(vit, images(), Recipe.paper(scope="all")), backend="exact")
    )


def test_points_are_summarised_by_pattern() -> None:
    points = ["a.0.b", "a.10.b", "head.output", "a.0.fc2"]
    assert _summarised(points) == ["a.*.b (2)", "head.output", "a.*.fc2"]


@torch.no_grad()
def test_swin_windows_that_need_padding_keep_their_norm_in_float() -> None:
    from timm.models.swin_transformer import SwinTransformer

    torch.manual_seed(0)
    padded = SwinTransformer(
        img_size=20, patch_size=2, window_size=4, embed_dim=24, depths=(2,), num_heads=(2,), num_classes=5
    ).eval()
    assert padded.layers[0].blocks[0].input_resolution == (10, 10)
    qmodel = quantize(padded, images(size=20), Recipe.paper(scope="linear"))
    fast = deploy(qmodel, torch.float32, "exact")
    block = fast.model.layers[0].blocks[0]
    assert type(block.norm1) is not IntegerLayerNorm
    assert type(block.norm2) is IntegerLayerNorm
    assert torch.equal(fast(images(size=20)), qmodel(images(size=20)))


@torch.no_grad()
def test_an_approximate_gelu_stays_as_it_is(vit: nn.Module) -> None:
    for block in vit.blocks:
        block.mlp.act = nn.GELU(approximate="tanh")
    qmodel = quantize(vit, images(), Recipe.paper(scope="linear"))
    fast = deploy(qmodel, torch.float32, "exact")
    assert fast.model.blocks[0].mlp.fc1.activation is None
    assert torch.equal(fast(images()), qmodel(images()))


def test_the_fake_quantised_model_is_left_untouched(vit: nn.Module) -> None:
    qmodel = quantize(vit, images(), Recipe.paper(scope="linear"))
    before = qmodel(images())
    deploy(qmodel, torch.bfloat16)
    assert torch.equal(qmodel(images()), before)
    assert next(qmodel.parameters()).dtype == torch.float32


def test_deployed_models_offer_patch_features(vit: nn.Module) -> None:
    qmodel = quantize(vit, images(), Recipe.paper(scope="linear"))
    with torch.no_grad():
        expected = patch_features(qmodel, images())
        found = patch_features(deploy(qmodel, torch.float32, "exact").model, images())
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("backend", [*also("exact"), "onednn"])
def test_compiles_into_one_graph(model: nn.Module, backend: Any) -> None:
    fast = deploy(quantize(model, images(), Recipe.paper(4, scope="linear")), torch.float32, backend)
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    assert usual_sqnr(compiled(images()), fast(images())) > 60


def test_products_in_floats_compile_into_one_graph(vit: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy_module, "runs_in_integers", lambda _: False)
    fast = deploy(quantize(vit, images(), Recipe.paper(scope="linear")))
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    assert usual_sqnr(compiled(images()), fast(images())) > 60


def test_what_cannot_be_deployed_is_refused(vit: nn.Module) -> None:
    with pytest.raises(PsaqError, match="is not quantised; deploy what"):
        deploy(vit)
    qmodel = quantize(vit, images(), Recipe.paper(scope="linear"))
    with pytest.raises(PsaqError, match="deploy computes in float32, float16 or bfloat16"):
        deploy(qmodel, torch.float64)
    with pytest.raises(PsaqError, match="is not quantised"):
        deploy(deploy(qmodel))


def test_casting_leaves_the_numbers_that_integers_are_made_of(vit: nn.Module) -> None:
    fast = deploy(quantize(vit, images(), Recipe.paper(weights=4, scope="linear")), backend="exact")
    assert isinstance(fast, IntegerModel)
    fc1 = fast.half().model.blocks[0].mlp.fc1
    kinds = {name: buffer.dtype for name, buffer in fc1.named_buffers()}
    floats = {"scale": torch.float32, "bias": torch.float32}
    assert kinds == {"values": torch.uint8, "column_sums": torch.int32, **floats}


class AsksItsLayers(nn.Module):
    """Reads its layers' settings and types as it runs, as many models do."""

    num_classes, image_size = 3, 32

    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.proj, self.head = nn.Conv2d(3, 16, 8, 8), *(nn.Linear(16, n) for n in (48, 16, 3))

    def forward(self, images: Tensor) -> Tensor:
        rows, columns = self.embed.kernel_size
        assert images.shape[2] % rows == images.shape[3] % columns == 0
        x = self.embed(images.to(self.embed.weight.dtype)).flatten(2).mT
        q, k, v = self.qkv(x).unflatten(-1, (3, self.qkv.in_features)).unbind(-2)
        return self.head(self.proj(nn.functional.scaled_dot_product_attention(q, k, v)).mean(1))


@torch.no_grad()
def test_what_a_model_asks_of_its_layers_is_still_there():
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    qmodel = quantize(AsksItsLayers().eval(), images, Recipe.paper(8, 8))
    fast = deploy(qmodel, torch.float32, backend="exact")
    assert logit_sqnr(fast(images), qmodel(images)) > 90
    assert simulate(qmodel, torch.bfloat16)(images).dtype == torch.bfloat16
    assert fast.model.embed.stride == (8, 8)


_AGAIN = ("norm before a layer", "norm", "layer behind the norm", "activation", "layer before it", "layer behind it")


@torch.no_grad()
def test_a_model_of_integers_alone_is_scored_and_captured_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    torch.manual_seed(1)
    qmodel = quantize(AsksItsLayers().eval(), images(), Recipe.paper(8, 8, scope="linear"))
    for dtype in (torch.float32, torch.bfloat16):
        fast = deploy(qmodel, dtype)
        assert not list(fast.parameters())
        assert evaluate(fast, TensorDataset(images(), torch.zeros(6, dtype=torch.long)), qmodel).logit_sqnr > 20
        assert torch.equal(capture(fast, images())(images(seed=2)), fast(images(seed=2)))


@pytest.mark.parametrize("part", ["nothing", *_AGAIN, "blocks"])
@torch.no_grad()
def test_neighbours_are_joined_only_where_they_always_are(part: str) -> None:
    qmodel = quantize(running_twice(part), images(), Recipe.paper(8, 8, scope="linear"))
    fast = deploy(qmodel, torch.float32, "exact")
    assert torch.equal(fast(images(seed=2)), qmodel(images(seed=2)))
    by_levels = isinstance(fast.model.norm, IntegerLayerNorm), fast.model.fc1.activation == "gelu"
    assert by_levels == (part not in _AGAIN[:3], part not in _AGAIN[3:])


# oneDNN, and float products where it would sum wrongly ----------------------------------------------------------


@pytest.fixture(params=["products", "floats"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of the default, whatever this processor takes: products of up to 7 bits are right nearly anywhere."""
    if request.param == "floats":
        monkeypatch.setattr(deploy_module, "runs_in_integers", lambda _: False)
    elif largest_exact_weight() == 0:
        pytest.skip("oneDNN has no product of bytes here")
    return request.param


@pytest.mark.parametrize("weights", [7, *also(4)])
@pytest.mark.parametrize("scope", ["linear", "matmul", "all"])
@torch.no_grad()
def test_the_default_differs_from_the_simulation_by_rounding(
    model: nn.Module, weights: int, scope: Any, way: str
) -> None:
    qmodel, x = quantize(model, images(), Recipe.paper(weights, scope=scope)), images(16, seed=2)
    fast = deploy(qmodel)
    layers = [module for module in fast.modules() if isinstance(module, IntegerLinear)]
    assert {layer.backend for layer in layers} == {"onednn" if way == "products" else "floats"}
    # A level that another rounding moves is noise of the size of quantisation itself, in a few images.
    assert usual_sqnr(fast(x), qmodel(x)) > 45
    assert logit_sqnr(fast(x), model(x)) > logit_sqnr(qmodel(x), model(x)) - 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_so_it_does_in_half_precision(vit: nn.Module, dtype: torch.dtype, way: str) -> None:
    qmodel, x = quantize(vit, images(), Recipe.paper(6, scope="linear")), images(32, seed=2)
    found = deploy(qmodel, dtype)(x)
    assert found.dtype == dtype
    assert logit_sqnr(found.float(), vit(x)) > logit_sqnr(qmodel(x), vit(x)) - 3


@torch.no_grad()
def test_activations_of_fewer_bits_are_clamped_there_too(model: nn.Module, way: str) -> None:
    qmodel, x = quantize(model, images(), Recipe.paper(6, 5, scope="linear")), images(16, seed=2)
    assert usual_sqnr(deploy(qmodel)(x), qmodel(x)) > 40


@torch.no_grad()
def test_copies_and_loaded_weights_answer_with_their_own_integers(vit: nn.Module, way: str) -> None:
    fast, x = deploy(quantize(vit, images(), Recipe.paper(6, scope="linear"))), images(seed=2)
    before = fast(x)
    other = copy.deepcopy(fast)
    assert torch.equal(other(x), before)
    state = {name: tensor.clone() for name, tensor in fast.state_dict().items()}
    state["model.blocks.0.attn.proj.values"].neg_().clamp_(-32, 31)
    other.load_state_dict(state)
    assert not torch.equal(other(x), before)
    fresh = copy.deepcopy(fast)
    fresh.load_state_dict(state)
    assert torch.equal(other(x), fresh(x))
    assert torch.equal(fast(x), before)


def test_nothing_looks_at_calls_that_have_no_points(vit: nn.Module) -> None:
    linear, matmul = (deploy(quantize(vit, images(), Recipe.paper(scope=scope))) for scope in ("linear", "matmul"))
    assert not any(isinstance(module, Watched) for module in linear.modules())
    assert any(isinstance(module, Watched) for module in matmul.modules())
    assert type(linear.model) is type(vit)


@torch.no_grad()
def test_queries_keys_and_values_share_one_quantised_input(way: str) -> None:
    model = made("transformers: ViT")
    x = images_for(model)
    qmodel = quantize(model, x, Recipe.paper(6, scope="linear"))
    fast = deploy(qmodel)
    norms = [module for module in fast.modules() if isinstance(module, IntegerLayerNorm)]
    readers = [module for module in fast.modules() if isinstance(module, IntegerLinear) and module.reads_levels]
    assert len(norms) >= 2
    assert len(readers) >= 2 * len(norms)
    exact = Answering(deploy(qmodel, backend="exact"))(x)
    assert torch.equal(exact, Answering(qmodel)(x))
    assert usual_sqnr(Answering(fast)(x), exact) > 40


def test_a_backend_that_is_not_known_or_cannot_run_is_refused(vit: nn.Module) -> None:
    qmodel = quantize(vit, images(), Recipe.paper(scope="linear"))
    with pytest.raises(PsaqError, match='deploy knows "onednn" and "exact"'):
        deploy(qmodel, backend="triton")  # type: ignore[arg-type]
    with pytest.raises(PsaqError, match="computes on a CPU, and the model is on meta"):
        deploy(copy.deepcopy(qmodel).to("meta"), backend="onednn")


def test_a_deployed_model_of_torchvisions_keeps_its_classes() -> None:
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=7).eval()
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert classes_or_none(deploy(quantize(model, images, Recipe.paper(8, 8, "linear")))) == 7

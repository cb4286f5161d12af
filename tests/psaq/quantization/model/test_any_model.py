"""Models of every make are quantised, all of their work; what they are and answer stays."""

import copy
import math
import pickle

import pytest
import timm
import torch
from makes import MAKES, images_for, made
from repeats import also
from torch import nn

from psaq.density import patch_similarity_density
from psaq.density.maps import similarity_maps
from psaq.errors import PsaqError
from psaq.experiments.share import quantised_share
from psaq.models.answers import Answering
from psaq.models.calling import tensors_of
from psaq.models.data import data_config
from psaq.models.features import feature_sites
from psaq.quantization.budget import fit_budget, parse_budget
from psaq.quantization.checkpoint import load, save
from psaq.quantization.deployment.deploy import deploy
from psaq.quantization.deployment.simulate import simulate
from psaq.quantization.layer_errors import layer_sqnr
from psaq.quantization.model.conversion import converted
from psaq.quantization.model.heads import _MarkedRun
from psaq.quantization.model.points import all_points, live_points, points_in_scope
from psaq.quantization.model.structure import StructureReader
from psaq.quantization.pipeline import left_out, quantize
from psaq.quantization.recipes import Recipe
from psaq.quantization.sensitivity import sensitivity
from psaq.synthesis import SynthesisConfig, synthesize
from psaq.tasks.classification import logit_sqnr


def same(one: object, other: object) -> bool:
    return all(torch.equal(*pair) for pair in zip(tensors_of(one), tensors_of(other), strict=True))


def is_picklable(model: nn.Module) -> bool:
    """Whether a model is, once it has run: some of transformers' then hold functions that are not."""
    try:
        pickle.dumps(model)
    except (AttributeError, pickle.PicklingError):
        return False
    return True


@pytest.mark.parametrize("make", MAKES)
@torch.no_grad()
def test_a_converted_model_answers_the_same(make):
    model = made(make)
    images = images_for(model)
    qmodel, _ = converted(model, images)
    wanted = Answering(model)(images)
    # torch runs its own attention module as one call, which rounds otherwise than the single ones.
    assert logit_sqnr(Answering(qmodel)(images), wanted) > (100 if make.startswith(("own", "torchvision")) else 200)
    for name in all_points(qmodel):
        qmodel.set_submodule(name, nn.Identity())  # no Point: takes the place of a quantiser
    assert logit_sqnr(Answering(qmodel)(images), wanted) > 100


@pytest.mark.parametrize("make", MAKES)
def test_every_product_is_quantised(make):
    model = made(make)
    images = images_for(model)
    share = quantised_share(quantize(model, images, Recipe.paper(4, 8, scope="matmul")), images[:1], 4, 8)
    assert share.percent > 98, share.others
    assert share.multiplications > 0


def test_the_share_tells_what_is_not_quantised():
    model = made("own: fused")
    images = images_for(model)
    assert quantised_share(model, images, 4, 8).percent < 1  # the head's few numbers are few levels
    linear = quantised_share(quantize(model, images, Recipe.paper(4, 8, scope="linear")), images, 4, 8)
    assert 0 < linear.percent < 100
    assert any("attention" in other for other in linear.others)


@pytest.mark.parametrize("make", MAKES)
@torch.no_grad()
def test_the_accurate_recipe_goes_all_the_way(make, tmp_path):
    model = made(make)
    images = images_for(model, 2)
    qmodel = quantize(model, images, Recipe.accurate(8, 8, flat_copies=0))
    answers = Answering(qmodel)(images)
    assert logit_sqnr(answers, Answering(model)(images)) > 8
    save(qmodel, tmp_path / "model.safetensors")
    assert same(load(tmp_path / "model.safetensors", model)(images), qmodel(images))
    assert torch.equal(Answering(deploy(qmodel, torch.float32, "exact"))(images), answers)
    assert same(copy.deepcopy(qmodel)(images), qmodel(images))
    if is_picklable(model):
        assert same(pickle.loads(pickle.dumps(qmodel))(images), qmodel(images))


@pytest.mark.parametrize("make", MAKES)
@torch.no_grad()
def test_half_precision_figures_and_measures_take_any_model(make):
    model = made(make)
    images = images_for(model, 2)
    qmodel = quantize(model, images, Recipe.paper(8, 8, scope="matmul"))
    fast, wanted = deploy(qmodel, torch.bfloat16), simulate(qmodel, torch.bfloat16)
    # Half precision flips levels here and there, in each of the two on its own.
    assert logit_sqnr(Answering(fast)(images), Answering(wanted)(images)) > 8
    for each in (model, qmodel):
        assert all(0 <= kept.patch[0] < len(kept.over_image) for kept in similarity_maps(each, images[0]))
    if images.shape[2:] == data_config(model).image_size:
        curves = patch_similarity_density(fast, images)
        assert len(curves.layers) == len(feature_sites(model))
    assert min(value for layer in layer_sqnr(qmodel, images).values() for value in layer.values()) > 5


@pytest.mark.parametrize(
    "make", ["timm: swin v2", *also("timm: xcit"), "transformers: SegFormer", *also("own: encoder layer")]
)
def test_bits_are_shared_out_in_any_model(make, tmp_path):
    model = made(make)
    images = images_for(model, 2)
    measured = sensitivity(model, images, Recipe.paper(4, 8, scope="matmul"))
    assert not any(math.isnan(layer.logit_sqnr) for layer in measured.layers)
    save(quantize(model, images, Recipe.paper(8, 8, scope="linear")), tmp_path / "widest.safetensors")
    size = 0.9 * (tmp_path / "widest.safetensors").stat().st_size
    recipe = fit_budget(model, images, Recipe.paper(8, 8, scope="linear"), parse_budget(f"{size / 1e6}MB"))
    assert recipe.overrides
    save(quantize(model, images, recipe), tmp_path / "fitted.safetensors")
    assert (tmp_path / "fitted.safetensors").stat().st_size <= size


@pytest.mark.parametrize(
    "make", ["timm: beit", *also("timm: swin v2", "own: module"), "transformers: ViT", "own: products"]
)
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")
@torch.no_grad()
def test_it_compiles_and_exports_whole(make):
    model = made(make)
    images = images_for(model)
    qmodel = quantize(model, images, Recipe.paper(8, 8, scope="all"))
    assert same(torch.compile(qmodel, fullgraph=True, backend="eager")(images), qmodel(images))
    program = torch.export.export(qmodel, (images,), strict=False)
    assert same(program.module()(images), qmodel(images))
    assert not [node for node in program.graph.nodes if "scaled_dot_product" in str(node.target)]


@pytest.mark.parametrize("make", ["timm: beit", "transformers: Swin V2", "own: encoder layer"])
def test_it_stays_what_it_was(make):
    model = made(make)
    qmodel = quantize(model, images_for(model), Recipe.paper(8, 8))
    assert isinstance(qmodel, type(model))
    assert type(qmodel).__name__ == type(model).__name__
    names = {name for name, _ in model.named_modules()}
    assert names <= {name for name, _ in qmodel.named_modules()}


def test_gradients_pass_through_to_the_images():
    model = made("timm: beit")
    images = images_for(model).requires_grad_()
    quantize(model, images.detach(), Recipe.paper(8, 8, scope="matmul"))(images).sum().backward()
    assert images.grad is not None
    assert float(images.grad.abs().max()) > 0


def test_hooks_see_what_they_saw():
    model = made("timm: beit")
    images, seen = images_for(model), []
    qmodel = quantize(model, images, Recipe.paper(8, 8, scope="matmul"))
    qmodel.blocks[1].register_forward_hook(lambda _, __, output: seen.append(output.shape))
    qmodel(images)
    assert seen == [(3, 17, 32)]


def test_layers_left_in_float_are_left_alone():
    model = made("timm: beit")
    images = images_for(model)
    qmodel = quantize(model, images, Recipe.accurate(8, 8, flat_copies=0, overrides=[("*.qkv", None, None)]))
    assert not [name for name in live_points(qmodel) if ".qkv." in name]
    assert [name for name in live_points(qmodel) if ".proj." in name]


def test_a_model_without_attention_is_refused():
    convolutions = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    with pytest.raises(PsaqError, match="Sequential: has no self-attention"):
        quantize(convolutions, torch.randn(2, 3, 16, 16), Recipe.paper())


def test_images_that_do_not_fit_are_refused_by_name():
    with pytest.raises(PsaqError, match=r"Beit: does not take images of shape \(1, 3, 20, 20\)"):
        quantize(made("timm: beit"), torch.randn(2, 3, 20, 20), Recipe.paper())


def test_what_has_no_place_is_said():
    model = made("timm: swin v2")
    qmodel = quantize(model, images_for(model), Recipe.accurate(8, 8, flat_copies=0))
    assert set(left_out(qmodel)) == {
        "pixel grid",
        "rotated streams",
        "rotated heads",
        "equalised attention",
        "folded norms",
    }
    with pytest.raises(PsaqError, match="is not quantised"):
        left_out(model)


@pytest.mark.parametrize("attention", ["fused", "windows", "products"])
def test_plain_attention_is_found_in_its_windows(attention):
    model = made(f"own: {attention}")
    missing = left_out(quantize(model, images_for(model), Recipe.accurate(8, 8, flat_copies=0)))
    assert not {"rotated heads", "equalised attention"} & missing.keys()


def test_plain_attention_is_looked_for_on_the_models_device():
    model = made("own: fused")
    qmodel, seen = converted(model, images_for(model))
    elsewhere = qmodel.to("meta")
    marks = _MarkedRun(elsewhere, seen, StructureReader(elsewhere, seen))(images_for(model)[:1].to("meta"))
    assert {mark.device.type for mark in marks.values()} == {"meta"}


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_stays_what_it_is(kind, tmp_path):
    model = made("own: fused").to(kind)
    images = images_for(model)
    qmodel = quantize(model, images, Recipe.accurate(8, 8, flat_copies=0))
    assert {parameter.dtype for parameter in qmodel.parameters()} == {kind}
    answers = Answering(qmodel)(images.to(kind))
    assert logit_sqnr(answers, Answering(model)(images.to(kind))) > 15
    save(qmodel, tmp_path / "model.safetensors")
    assert torch.equal(Answering(load(tmp_path / "model.safetensors", made("own: fused")))(images.to(kind)), answers)


def test_scope_all_has_the_authors_points_in_any_model():
    model = made("transformers: ViT")
    qmodel, _ = converted(model, images_for(model))
    block = "vit.encoder.layer.0." if any(n.startswith("vit.encoder") for n in all_points(qmodel)) else "vit.layers.0."
    names = [name.removeprefix(block) for name in points_in_scope(qmodel, "all") if name.startswith(block)]
    assert sum(name.endswith("residual1") or name.endswith("residual2") for name in names) == 2
    assert sum(name.endswith(".scores") for name in names) == 1
    assert sum(name.endswith(".output") for name in names) == 5  # query, key, value, both projections; not before GELU


def test_a_new_input_size_loses_no_quantiser():
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    model = timm.create_model("vit_tiny_patch16_224", **options).eval()
    qmodel = quantize(model, torch.randn(4, 3, 32, 32), Recipe.paper(8, 8))
    before = set(live_points(qmodel))
    for resized in (model, qmodel):
        resized.set_input_size(img_size=64, patch_size=16)
    assert set(live_points(qmodel)) == before
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert logit_sqnr(qmodel(images), model(images)) > 10
        assert torch.equal(qmodel.forward_head(qmodel.forward_features(images)), qmodel(images))


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_images_of_other_channels_and_shapes_go_all_the_way(channels):
    torch.manual_seed(0)
    options = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    model = timm.create_model("vit_tiny_patch16_224", in_chans=channels, **options).eval()
    images = synthesize(model, SynthesisConfig(num_images=2, steps=2, film_frames=2), progress=False)
    assert images.images.shape == (2, channels, 32, 48)
    assert images.labels.tolist() == [-1, -1]
    qmodel = quantize(model, images, Recipe.accurate(8, 8, flat_copies=0))
    assert logit_sqnr(Answering(qmodel)(images.images), Answering(model)(images.images)) > 15


def test_wrappers_are_opened(capsys):
    model = made("own: fused")
    qmodel = quantize(nn.DataParallel(torch.compile(model)), images_for(model), Recipe.paper())
    assert isinstance(qmodel, type(model))
    assert "took the Own out of DataParallel, OptimizedModule" in capsys.readouterr().err

"""Models whose weights are in groups: quantised, saved, loaded, budgeted, and with which layers left out."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.files import load_tensors, read_safetensors, save_tensors
from psaq.models.zoo import build_model, named_source
from psaq.quantization.budget import fit_budget, parse_budget
from psaq.quantization.checkpoint import KIND, load, save
from psaq.quantization.layer_errors import layer_sqnr
from psaq.quantization.model.layers import QuantLinear
from psaq.quantization.pipeline import left_out, quantize
from psaq.quantization.recipes import Recipe
from psaq.quantization.sensitivity import sensitivity

NAMED = {"img_size": 32, "patch_size": 8, "embed_dim": 96, "depth": 2, "num_heads": 3, "num_classes": 10}
RECIPES = [
    Recipe.paper(4, 8),
    Recipe.accurate(3, 8),
    Recipe.accurate(4, 8, scope="linear", error_correction=0.5, reconstruction_steps=3, distillation_steps=3),
]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return build_model(named_source("vit_tiny_patch16_224.augreg_in21k_ft_in1k", NAMED)).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def weights_of(qmodel: nn.Module) -> dict[str, QuantLinear]:
    return {name: layer for name, layer in qmodel.named_modules() if isinstance(layer, QuantLinear)}


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("group", [32, 64, 128])
def test_outputs_are_the_same_bits_after_a_round_trip(model, images, tmp_path, recipe, group):
    qmodel = quantize(model, images, replace(recipe, group=group))
    save(qmodel, tmp_path / "q.safetensors")
    loaded = load(tmp_path / "q.safetensors")
    assert torch.equal(loaded(images), qmodel(images))
    assert loaded.psaq_recipe.group == group
    for name, layer in weights_of(loaded).items():
        quantizer, weight = layer.weight_quantizer, layer.weight.detach()
        assert quantizer.group == (group if quantizer.bits <= 4 and weight.shape[1] > group else None), name
        assert torch.equal(quantizer(weight), weight), name
    assert left_out(loaded)["weights in groups"].startswith("patch_embed.proj")


def test_scales_of_groups_take_16_bits_in_the_file(model, images, tmp_path):
    qmodel = quantize(model, images, Recipe.paper(4, 8, "linear"))
    grouped = quantize(model, images, replace(Recipe.paper(4, 8, "linear"), group=32))
    tensors = {}
    for name, each in (("whole", qmodel), ("grouped", grouped)):
        save(each, tmp_path / name)
        tensors[name], metadata = read_safetensors(tmp_path / name)
        assert metadata["format_version"] == ("2" if name == "grouped" else "1")
    scale = "blocks.0.mlp.fc2.weight_quantizer.scale"
    assert tensors["whole"][scale].dtype == torch.float32
    assert tensors["grouped"][scale].dtype == torch.float16
    assert tensors["grouped"][scale].shape == (96, 384 // 32)
    assert Recipe(4, group=32).weight_bits == 4.5
    layer = "blocks.0.mlp.fc2.weight"
    taken = sum(tensor.numel() * tensor.element_size() for tensor in (tensors["grouped"][k] for k in (scale, layer)))
    assert 8 * taken == 4.5 * 96 * 384


def test_layers_of_no_more_inputs_than_a_group_are_as_without(vit, images):
    """48 inputs: every layer but fc2."""
    qmodel, grouped = (quantize(vit, images, replace(Recipe.paper(4, 8), group=group)) for group in (None, 64))
    for (name, layer), other in zip(weights_of(qmodel).items(), weights_of(grouped).values(), strict=True):
        same = torch.equal(layer.weight_quantizer.scale, other.weight_quantizer.scale) if "fc2" not in name else None
        assert same is not False
        assert (other.weight_quantizer.group == 64) == ("fc2" in name)


def test_smaller_groups_lose_less(model, images):
    found = []
    for group in (None, 128, 64, 32):
        errors = layer_sqnr(quantize(model, images, Recipe(3, 8, group=group)), images)
        found.append(sum(error.get("weights", 0.0) for error in errors.values()))
    assert found == sorted(found)


def test_without_a_group_files_are_as_before(model, images, tmp_path):
    save(quantize(model, images, Recipe.paper(4, 8)), tmp_path / "q.safetensors")
    _, header = load_tensors(tmp_path / "q.safetensors", KIND)
    assert "group" not in header["recipe"]
    assert not any("group" in description for description in header["points"].values())
    assert Recipe.paper(4, 8).digest == "40a72d22"


def test_budget_and_sensitivity_measure_with_groups(model, images, tmp_path):
    recipe = Recipe.accurate(4, 8, collages=0, flat_copies=0, group=32)
    fitted = fit_budget(model, images, recipe, parse_budget("180kB"))
    assert fitted.group == 32
    save(quantize(model, images, fitted), tmp_path / "q.safetensors")
    assert (tmp_path / "q.safetensors").stat().st_size <= 180_000
    rows, coarse = (sensitivity(model, images, replace(recipe, group=group)).layers for group in (32, None))
    assert sum(row.logit_sqnr for row in rows) > sum(row.logit_sqnr for row in coarse)


def test_more_bits_have_no_groups_and_it_says_so(model, images):
    qmodel = quantize(model, images, Recipe(8, 8, group=32))
    assert all(layer.weight_quantizer.group is None for layer in weights_of(qmodel).values())
    assert left_out(qmodel)["weights in groups"].startswith("patch_embed.proj, blocks.0.attn.qkv")
    assert Recipe(8, group=32).weight_bits == 8


def test_overrides_may_leave_every_convolution_in_float(model, images):
    recipe = Recipe(4, 8, group=32, overrides=(("patch_embed.proj", None, None),))
    assert "weights in groups" not in left_out(quantize(model, images, recipe))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, header: header["recipe"].update(group=64), "in groups of 32, and of 64 by the recipe"),
        (lambda tensors, header: header["points"][POINT].update(group=64), "in groups of 64, and of 32"),
        (lambda tensors, header: header["points"][POINT].pop("group"), "in groups of None, and of 32"),
        (lambda tensors, header: header["points"][POINT].update(group="32"), "in groups of"),
        (lambda tensors, header: header["points"]["head.input"].update(group=32), "is described by"),
        (lambda tensors, header: tensors.update({SCALE: tensors[SCALE].float()}), "torch.float32, not torch.float16"),
        (lambda tensors, header: tensors.update({SCALE: tensors[SCALE][:, :2]}), "scale is"),
        (lambda tensors, header: tensors.update({SCALE: tensors[SCALE][:, 0]}), "of shape"),
        (lambda tensors, header: tensors.update({SCALE: 0 * tensors[SCALE]}), "not positive and finite"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(model, images, tmp_path, change, message):
    path = tmp_path / "q.safetensors"
    save(quantize(model, images, Recipe(4, 8, group=32)), path)
    tensors, header = load_tensors(path, KIND)
    change(tensors, header)
    save_tensors(path, tensors, KIND, header, 2)
    with pytest.raises(PsaqError, match=message):
        load(path)


POINT = "blocks.0.mlp.fc2.weight_quantizer"
SCALE = f"{POINT}.scale"

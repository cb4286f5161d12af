"""A file whose numbers or words cannot be meant is refused, digest or not."""

import math

import pytest
import torch

from psaq.errors import PsaqError
from psaq.files import load_tensors, save_tensors
from psaq.models.zoo import build_model, named_source
from psaq.quantization.checkpoint import KIND, load, save
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2, "num_classes": 3}
IMPOSSIBLE = (math.nan, math.inf, -math.inf, 0.0, -1.0, 1e-42, 1e38)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Tensors and header of a model with every kind of quantiser, weights of 3 bits."""
    torch.manual_seed(0)
    model = build_model(named_source("vit_tiny_patch16_224.augreg_in21k_ft_in1k", TINY))
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    path = tmp_path_factory.mktemp("whole") / "q.safetensors"
    save(quantize(model, images, Recipe.accurate(3, 8)), path)
    tensors, header = load_tensors(path, KIND)
    assert {point.get("kind", "affine") for point in header["points"].values()} == {"affine", "log", "split"}
    assert any(name.endswith("pixels.std") for name in tensors)
    return tensors, header


def refuses(tmp_path, tensors, header, message):
    save_tensors(tmp_path / "q.safetensors", tensors, KIND, header)
    with pytest.raises(PsaqError, match=rf"q\.safetensors.*{message}"):
        load(tmp_path / "q.safetensors")


def changed(tensors, name, value):
    tensor = tensors[name].clone()
    tensor.view(-1)[-1] = value
    return {**tensors, name: tensor}


@pytest.mark.parametrize("value", IMPOSSIBLE)
@pytest.mark.parametrize("part", ["scale", "top", "levels_per_octave", "negative_step", "std"])
def test_ranges_are_positive_and_finite(saved, tmp_path, part, value):
    tensors, header = saved
    name = next(name for name in tensors if name.endswith(f".{part}"))
    refuses(tmp_path, changed(tensors, name, value), header, name)


def test_every_other_number_is_finite(saved, tmp_path):
    tensors, header = saved
    plain = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
    assert len(plain) > 20
    for name in plain[:: len(plain) // 20]:
        refuses(tmp_path, changed(tensors, name, math.nan), header, name)


@pytest.mark.parametrize("value", [-1, 256])
def test_zero_points_are_inside_their_bits(saved, tmp_path, value):
    tensors, header = saved
    name = next(name for name in tensors if name.endswith("input.zero_point"))
    refuses(tmp_path, changed(tensors, name, value), header, rf"{name} is beyond \[0, 255\]")


def test_zero_points_are_whole(saved, tmp_path):
    tensors, header = saved
    name = next(name for name in tensors if name.endswith("input.zero_point"))
    refuses(tmp_path, {**tensors, name: tensors[name].float()}, header, name)


@pytest.mark.parametrize("nibble", [0x04, 0x70, 0x80])
def test_weights_are_inside_their_bits(saved, tmp_path, nibble):
    tensors, header = saved
    name = "blocks.0.mlp.fc1.weight"
    refuses(tmp_path, changed(tensors, name, nibble), header, rf"{name} has integers beyond \[-4, 3\]")


def test_numbers_of_another_shape_or_type_are_refused(saved, tmp_path):
    tensors, header = saved
    for name, tensor in (
        ("blocks.0.mlp.fc1.weight_quantizer.scale", torch.ones(1)),
        ("blocks.0.mlp.fc1.weight_quantizer.scale", torch.ones(2, 24)),
        ("blocks.0.mlp.fc1.weight", tensors["blocks.0.mlp.fc1.weight"].view(torch.int8)),
        ("blocks.0.attn.qkv.input.scale", torch.ones(12)),
    ):
        refuses(tmp_path, {**tensors, name: tensor}, header, name)


@pytest.mark.parametrize(
    ("point", "change"),
    [
        ("blocks.0.mlp.fc1.weight_quantizer", {"bits": 2}),
        ("blocks.0.mlp.fc1.weight_quantizer", {"bits": 4}),
        ("blocks.0.mlp.fc1.weight_quantizer", {"bits": 33}),
        ("blocks.0.attn.qkv.input", {"bits": 7}),
        ("blocks.0.attn.qkv.input", {"symmetric": True}),
        ("blocks.0.attn.qkv.input", {"symmetric": "no"}),
        ("blocks.0.attn.qkv.input", {"speed": 1}),
        ("blocks.0.attn.probabilities", {"bits": 6}),
        ("blocks.0.attn.probabilities", {"kind": "lag"}),
        ("blocks.0.mlp.fc2.input", {"curve": 3}),
        ("blocks.0.mlp.fc2.input", {"negative_levels": 255}),
        ("blocks.0.mlp.fc2.input", {"negative_levels": 1.5}),
        ("blocks.0.mlp.fc2.input", {"negative_levels": -1}),
    ],
)
def test_points_agree_with_the_recipe(saved, tmp_path, point, change):
    tensors, header = saved
    points = {**header["points"], point: {**header["points"][point], **change}}
    refuses(tmp_path, tensors, {**header, "points": points}, "")


@pytest.mark.parametrize("part", ["recipe", "model", "data", "points", "structure", "sites", "left_out", "dtype"])
def test_nothing_is_missing_and_nothing_another_kind(saved, tmp_path, part):
    tensors, header = saved
    refuses(tmp_path, tensors, {name: value for name, value in header.items() if name != part}, "")
    refuses(tmp_path, tensors, {**header, part: 3}, "")
    refuses(tmp_path, tensors, {**header, part: "float"}, "")


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("recipe", {"weights": 4}),
        ("recipe", {"weights": 9}),
        ("recipe", {"speed": 1}),
        ("recipe", {"scope": "some"}),
        ("data", {"std": [0.5, 0.5, 0.0]}),
        ("data", {"std": [0.5, 0.5]}),
        ("data", {"mean": [0.5, 0.5, "0.5"]}),
        ("data", {"crop_pct": 0}),
        ("data", {"image_size": [0, 16]}),
        ("data", {"interpolation": "cubic"}),
        ("model", {"kind": "keras"}),
        ("model", {"architecture": "vit_tinier"}),
        ("model", {"name": 1}),
        ("structure", {"ends": ["blocks.9"]}),
        ("structure", {"layers": ["blocks.0"]}),
        ("left_out", {"pixel grid": 1}),
    ],
)
def test_words_are_those_that_are_known(saved, tmp_path, part, change):
    tensors, header = saved
    refuses(tmp_path, tensors, {**header, part: {**header[part], **change}}, "")


def test_an_unknown_part_is_refused(saved, tmp_path):
    tensors, header = saved
    refuses(tmp_path, tensors, {**header, "speed": 1}, "speed is unknown")
    site = {**header["sites"][0], "heads": 0}
    refuses(tmp_path, tensors, {**header, "sites": [site]}, "no patch features are at")


def test_undamaged_it_loads(saved, tmp_path):
    tensors, header = saved
    save_tensors(tmp_path / "q.safetensors", tensors, KIND, header)
    assert not load(tmp_path / "q.safetensors").training

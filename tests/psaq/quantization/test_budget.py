"""Budgets: the file is small enough, the bits are the best that fit, and what cannot be is refused."""

import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from repeats import also
from torch import Tensor, nn

from psaq import PsaqError, Recipe, gaussian_images, load_model, quantize, save
from psaq.quantization.budget import Choice, check_budget, fit_budget, parse_budget, pick_bits
from psaq.quantization.model.points import live_points, weight_points

SMALLEST = re.compile(r"it takes ([\d.]+) MB")


@pytest.fixture(params=["micro_vit", *also("micro_swin")])
def model(request) -> nn.Module:
    return load_model(request.param)


def file_size(model: nn.Module, images: Tensor, recipe: Recipe, folder) -> int:
    save(quantize(model, images, recipe), folder / "q.safetensors")
    return (folder / "q.safetensors").stat().st_size


@pytest.mark.parametrize(("scope", "share"), [("matmul", 0.65), pytest.param("linear", 0.8, marks=pytest.mark.repeat)])
def test_the_file_is_as_large_as_allowed(model, scope, share, tmp_path):
    images = gaussian_images(model, 4)
    whole = file_size(model, images, Recipe.accurate(8, 8, scope), tmp_path)
    recipe = fit_budget(model, images, Recipe.accurate(8, 8, scope), parse_budget(f"{share * whole / 1e3}kB"))
    size = file_size(model, images, recipe, tmp_path)
    assert 0.93 * share * whole < size <= share * whole


def test_a_smaller_file_than_possible_is_refused_and_the_smallest_works(model, tmp_path):
    images, recipe = gaussian_images(model, 4), Recipe.accurate()
    with pytest.raises(PsaqError, match="cannot be that small") as raised:
        fit_budget(model, images, recipe, parse_budget("1kB"))
    with pytest.raises(PsaqError, match=re.escape(str(raised.value))):
        check_budget(model, recipe, parse_budget("1kB"))
    smallest = SMALLEST.search(str(raised.value))[1]
    fitted = fit_budget(model, images, recipe, parse_budget(f"{smallest}MB"))
    assert file_size(model, images, fitted, tmp_path) <= float(smallest) * 1e6


def test_a_large_budget_leaves_eight_bits(model):
    recipe = fit_budget(model, gaussian_images(model, 2), Recipe.accurate(4, 8), parse_budget("1GB"))
    assert recipe.weights == 8
    assert recipe.overrides == ()


def test_named_layers_keep_their_bits(vit, tmp_path):
    vit.pretrained_cfg = {**vit.pretrained_cfg, "input_size": (3, 32, 32)}
    images = gaussian_images(vit, 4)
    given_bits = Recipe.accurate(8, 6, overrides=(("*.fc2", 5, 7), ("head", 3, 8)))
    recipe = fit_budget(vit, images, given_bits, parse_budget("80%"))
    assert recipe.overrides[:2] == given_bits.overrides
    qmodel = quantize(vit, images, recipe)
    points = live_points(qmodel)
    assert points["blocks.0.mlp.fc2.weight_quantizer"].bits == 5
    assert points["head.weight_quantizer"].bits == 3
    others = {points[point].bits for point in weight_points(qmodel) if "fc2" not in point and "head" not in point}
    assert others == {4, 8}
    assert points["blocks.0.attn.qkv.input"].bits == 6


@settings(deadline=None, max_examples=60)
@given(
    layers=st.lists(st.tuples(st.integers(1, 30), st.floats(1e-6, 1), st.floats(0, 1e-3)), min_size=1, max_size=7),
    share=st.floats(0, 1.2),
)
def test_the_pick_is_the_best_of_all(layers, share):
    choices = {
        f"layer {index}": [Choice(4, 16 * size, coarse), Choice(8, 32 * size, fine)]
        for index, (size, coarse, fine) in enumerate(layers)
    }
    smallest = sum(options[0].size for options in choices.values())
    room = smallest + int(share * smallest)
    possible = itertools.product(*choices.values())
    best = min(sum(c.noise for c in pick) for pick in possible if sum(c.size for c in pick) <= room)
    bits = pick_bits(choices, room)
    picked = [next(c for c in options if c.bits == bits[layer]) for layer, options in choices.items()]
    assert sum(choice.size for choice in picked) <= room
    assert sum(choice.noise for choice in picked) == pytest.approx(best)


def test_sizes_without_a_common_factor_stay_within_the_room():
    sizes = (1_000_003, 2_000_029, 777_777, 123_457)
    choices = {str(size): [Choice(4, size, 1.0), Choice(8, 2 * size, 0.0)] for size in sizes}
    for room in (sum(sizes), sum(sizes) + 1_200_000, 2 * sum(sizes)):
        bits = pick_bits(choices, room)
        assert sum(size * bits[str(size)] // 4 for size in sizes) <= room
    assert set(bits.values()) == {8}


def test_the_noisiest_layer_gets_the_bits():
    choices = {name: [Choice(4, 10, noise), Choice(8, 20, 0.0)] for name, noise in (("a", 0.1), ("b", 0.9), ("c", 0.2))}
    assert pick_bits(choices, 40) == {"a": 4, "b": 8, "c": 4}


@pytest.mark.parametrize(("text", "size"), [("3.5MB", 3_500_000), ("900 kb", 900_000), ("1GB", 10**9), ("55%", 550)])
def test_budgets_are_read(text, size):
    assert parse_budget(text)(1000) == size


@pytest.mark.parametrize("text", ["", "3.5", "MB", "-1MB", "0MB", "50 percent", "0%"])
def test_other_budgets_are_refused(text):
    with pytest.raises(PsaqError, match="budget"):
        parse_budget(text)


def test_the_global_generator_and_the_model_are_left_alone(vit):
    vit.pretrained_cfg = {**vit.pretrained_cfg, "input_size": (3, 32, 32)}
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    fit_budget(vit, gaussian_images(vit, 2), Recipe.paper(), parse_budget("90%"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in vit.state_dict().items())

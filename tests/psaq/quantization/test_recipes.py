"""Recipes: what they refuse, and whose bits count where."""

import json
from dataclasses import asdict

import pytest

from psaq.errors import PsaqError
from psaq.quantization.recipes import RECIPES, Recipe


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weights": 1}, "weights: 1"),
        ({"activations": 9}, "activations: 9"),
        ({"ends": 16}, "ends: 16"),
        ({"scope": "everything"}, "'everything'.*all, matmul, linear"),
        ({"weight_scales": "min"}, "weight_scales 'min'.*max, squared_error"),
        ({"ranges": "percentile"}, "ranges 'percentile'.*full, search"),
        ({"softmax": "log2"}, "softmax 'log2'.*uniform, log"),
        ({"gelu": "twin"}, "gelu 'twin'.*uniform, split"),
        ({"rounding": "up"}, "rounding 'up'.*nearest, gptq"),
        ({"fold": 1.5}, r"fold 1\.5.*\[0, 1\]"),
        ({"fold": float("nan")}, "fold nan"),
        ({"damping": -1.0}, "damping -1"),
        ({"damping": float("inf")}, "damping inf"),
        ({"error_correction": float("nan")}, "error_correction nan"),
        ({"flat_copies": -1}, "flat_copies -1"),
        ({"overrides": (("*", 9, 8),)}, r"override \*: 9"),
        ({"overrides": (("*", 8, 1),)}, r"override \*: 1"),
        ({"overrides": (("*", None, 8),)}, r"override \*: None"),
        ({"overrides": (("*", 8, None),)}, r"override \*: None"),
        ({"overrides": (("*", 8),)}, "bits per weight, bits per activation"),
        ({"overrides": ((1, 8, 8),)}, "name pattern"),
        ({"overrides": (5,)}, "name pattern"),
        ({"overrides": None}, "overrides None: give a list"),
        ({"reconstruction_steps": -1}, "reconstruction_steps -1"),
        ({"reconstruction_steps": float("nan")}, "reconstruction_steps nan"),
        ({"weights": "4"}, "weights: '4'"),
        ({"activations": None}, "activations: None"),
        ({"scope": []}, r"scope \[\]"),
        ({"fold": True}, "fold True"),
        ({"damping": "0.1"}, "damping '0.1'"),
        ({"flat_copies": 1.5}, "flat_copies 1.5: must be a whole number"),
        ({"equalize": "no"}, "equalize 'no': must be True or False"),
        ({"group": 48}, "group 48: must be 32, 64, 128 inputs, or None"),
        ({"group": 64.0}, r"group 64\.0"),
        ({"group": True}, "group True"),
        ({"group": 0}, "group 0"),
    ],
)
def test_wrong_values_are_named(wrong, message):
    with pytest.raises(PsaqError, match=message):
        Recipe(**wrong)
    with pytest.raises(PsaqError, match=message):
        Recipe.accurate(**wrong)


def test_the_first_override_that_fits_decides():
    recipe = Recipe(4, 6, ends=8, overrides=(("blocks.1.*", 5, 7), ("*.fc2", 3, 4), ("head", 2, 2)))
    assert recipe.bits("blocks.1.mlp.fc2") == (5, 7)
    assert recipe.bits("blocks.0.mlp.fc2") == (3, 4)
    assert recipe.bits("blocks.0.mlp.fc1") == (4, 6)
    assert recipe.bits("head", is_end=True) == (2, 2)
    assert recipe.bits("patch_embed.proj", is_end=True) == (8, 8)
    assert recipe.bits("blocks.10.mlp.fc2") == (3, 4)


def test_twice_none_leaves_a_layer_in_float():
    recipe = Recipe(4, 6, ends=8, overrides=(("head", None, None), ("*", 5, 7)))
    assert recipe.bits("head", is_end=True) == (None, None)
    assert recipe.bits("blocks.0.mlp.fc2") == (5, 7)
    assert Recipe(**json.loads(json.dumps(asdict(recipe)))) == recipe


def test_without_ends_all_layers_have_the_recipes_bits():
    assert Recipe.paper(4, 6).bits("head", is_end=True) == (4, 6)
    assert Recipe.accurate(4, 6, ends=None).bits("head", is_end=True) == (4, 6)
    assert Recipe.accurate(4, 6).bits("head", is_end=True) == (8, 8)


def test_recipes_come_back_from_json():
    recipe = Recipe.accurate(4, 8, fold=0.5, overrides=[["*.fc2", 8, 8]])
    assert Recipe(**json.loads(json.dumps(asdict(recipe)))) == recipe


def test_any_part_of_the_accurate_recipe_is_switched_by_name():
    parts = {"softmax": "uniform", "gelu": "uniform", "rounding": "nearest", "equalize": False}
    more = {"bias_compensation": False, "flat_copies": 0, "ends": None, "weight_scales": "max"}
    for name, value in {**parts, **more}.items():
        assert getattr(Recipe.accurate(**{name: value}), name) == value
    with pytest.raises(TypeError, match="magic"):
        Recipe.accurate(magic=True)


def test_only_what_depends_on_earlier_layers_is_calibrated_in_order():
    assert not Recipe.paper().in_order
    assert Recipe.accurate().in_order
    for part in ({"rounding": "gptq"}, {"bias_compensation": True}, {"error_correction": 0.5}):
        assert Recipe(**part).in_order


def test_integer_layers_read_even_steps():
    assert Recipe.accurate(scope="linear").gelu == "uniform"
    assert Recipe.accurate(scope="linear", gelu="split").gelu == "split"


def test_recipes_go_by_name():
    assert RECIPES["paper"](4, 8) == Recipe.paper(4, 8)
    assert RECIPES["accurate"](4, 8) == Recipe.accurate(4, 8)
    assert str(Recipe.accurate(4, 8)) == "W4A8 (matmul, accurate)"
    assert str(Recipe.accurate(4, 8, group=64)) == "W4A8 (matmul, accurate, groups of 64: 4.25 bits a weight)"
    assert "1 override)" in str(Recipe(overrides=(("*", 8, 8),)))


def test_the_digest_changes_with_any_field_and_not_with_fields_that_stand_at_their_default():
    assert Recipe.paper().digest == Recipe().digest == Recipe(pixel_grid=False).digest
    others = (Recipe(4), Recipe(pixel_grid=True), Recipe(fold=0.5), Recipe(overrides=(("*", 8, 8),)))
    assert len({recipe.digest for recipe in (Recipe(), *others)}) == 5
    assert Recipe(fold=1).digest == Recipe(fold=1.0).digest

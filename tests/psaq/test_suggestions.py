"""A mistyped name is met with the one that was meant, wherever names are given."""

import sys

import pytest
import torch

from psaq.cli import COMMANDS, main
from psaq.errors import PsaqError
from psaq.models.zoo import load_model
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe
from psaq.suggestions import did_you_mean


def test_near_names_come_first_and_long_lists_are_not_read_out():
    many = [f"layer{index}.weight" for index in range(40)]
    assert did_you_mean("layer7.wieght", many).startswith("; did you mean layer7.weight")
    assert did_you_mean("Paper", ["paper", "accurate"]) == "; did you mean paper? (paper, accurate)"
    assert did_you_mean("best", ["paper", "accurate"]) == "; choose from paper, accurate"
    assert did_you_mean("nothing at all", many) == ""


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("micro_vitt", "micro_vit"),
        ("diet_tiny", "deit_tiny"),
        ("DeiT_Base", "deit_base"),
        ("swin_smal", "swin_small"),
        ("vit_base_pach16_224", "vit_base_patch16_224"),
        ("vit_base_pach16_224.augreg_in1k", "vit_base_patch16_224.augreg_in1k"),
    ],
)
def test_a_model(name, meant):
    with pytest.raises(PsaqError, match=rf"did you mean (\S+ or )*{meant}( |\?)"):
        load_model(name)


@pytest.mark.parametrize(
    ("change", "meant"),
    [({"scope": "matmull"}, "matmul"), ({"rotate": "stream"}, "streams"), ({"gelu": "spilt"}, "split")],
)
def test_a_recipes_part(change, meant):
    with pytest.raises(PsaqError, match=rf"did you mean {meant}\?"):
        Recipe.accurate(4, 8, **change)


def test_a_layer(vit):
    recipe = Recipe(overrides=(("blocks.1.mpl.fc2", 8, 8),))
    with pytest.raises(PsaqError, match=r"fits no layer of the model; did you mean .*blocks\.1\.mlp\.fc2"):
        quantize(vit, torch.rand(1, 3, 32, 32), recipe)


@pytest.mark.parametrize(
    ("name", "meant"), [("quantise", "quantize"), ("synthesise", "synthesize"), ("tabel1", "table1")]
)
def test_a_command(name, meant, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["psaq", name])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert meant in COMMANDS
    assert f"there is no command {name!r}; did you mean {meant}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["synthesize", "--modl", "x"], "--model"),
        (["quantize", "--recipe", "acurate"], "accurate"),
        (["synthesize", "--preset", "papr"], "paper"),
        (["table1", "--recipes", "papper", "--imagenet", "."], "paper"),
    ],
)
def test_an_option_or_its_value(arguments, meant, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["psaq", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert meant in "".join(capsys.readouterr())

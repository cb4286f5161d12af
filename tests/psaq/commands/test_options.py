"""How a command names its model."""

import pytest
from torch import nn

from psaq.commands.options import ModelOptions


@pytest.mark.parametrize(
    ("model", "label"),
    [
        ("micro_vit", "micro_vit"),
        ("deit_tiny_patch16_224.fb_in1k", "deit_tiny_patch16_224.fb_in1k"),
        ("transformers:google/vit-base-patch16-224", "vit-base-patch16-224"),
        ("transformers:/models/mine/", "mine"),
        ("transformers:mine", "transformers-mine"),
        ("models/own.py:build", "own.py-build"),
    ],
)
def test_a_runs_folder_is_named_by_the_model(model, label):
    assert ModelOptions(model).label == label


def test_a_function_of_ones_own_is_loaded_and_built(tmp_path):
    (tmp_path / "own.py").write_text("from torch import nn\ndef build(num_classes=3): return nn.Linear(2, num_classes)")
    options = ModelOptions(f"{tmp_path}/own.py:build", num_classes=5, device="cpu")
    for model in (options.load(), options.build()):
        assert isinstance(model, nn.Linear)
        assert model.out_features == 5

"""The bundled models: small, rebuildable from JSON, and as accurate as their records say."""

import json

import pytest
import torch
from torch import nn

from psaq.errors import PsaqError
from psaq.files import read_json
from psaq.images.scenes import CLASS_NAMES, SIZE
from psaq.models.features import patch_features
from psaq.models.micro import MICRO_MODELS, micro_architecture, micro_record, micro_weights
from psaq.models.zoo import ModelSource, build_model, data_config, load_model, num_classes
from psaq.training.scenes import held_out_accuracy

FEW = 400


@pytest.fixture(scope="module", params=MICRO_MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return load_model(name)


@pytest.fixture(scope="module")
def record(name):
    return read_json(micro_record(name))


def test_together_they_take_less_than_4_mb():
    assert sum(micro_weights(name).stat().st_size for name in MICRO_MODELS) <= 4_000_000


def test_they_take_scenes_as_they_are_and_know_their_classes(model):
    config = data_config(model)
    assert (config.image_size, config.crop_pct) == ((SIZE, SIZE), 1.0)
    assert num_classes(model) == len(CLASS_NAMES) == 10
    assert model.pretrained_cfg["label_names"] == list(CLASS_NAMES)


def test_every_block_has_patches_enough_for_a_density(model):
    features = patch_features(model, torch.zeros(2, 3, SIZE, SIZE))
    assert len(features) >= 6
    assert all(block.shape[1] * block.shape[2] >= 49 for block in features)


def test_the_vit_has_a_class_token():
    assert load_model("micro_vit").num_prefix_tokens == 1


def test_the_swin_shifts_its_windows_and_merges_patches():
    swin = load_model("micro_swin")
    assert any(any(getattr(module, "shift_size", (0, 0))) for module in swin.modules())
    assert any(type(module).__name__ == "PatchMerging" for module in swin.modules())


def test_the_architecture_survives_json(name, model):
    architecture, options = json.loads(json.dumps(micro_architecture(name)))
    rebuilt = build_model(ModelSource(name, architecture, options))
    rebuilt.load_state_dict(model.state_dict(), strict=True)
    assert data_config(rebuilt) == data_config(model)


def test_held_out_accuracy_is_the_recorded_one(model, record):
    recorded = record["results"]["top1"]
    assert 90 <= recorded <= 97
    assert record["held_out"]["scenes"] >= 2000
    assert held_out_accuracy(model, FEW, record["held_out"]["seed"]) >= recorded - 1.5


def test_low_bits_hurt(model, record):
    coarse = _rounded(model, levels=3)
    assert held_out_accuracy(coarse, FEW, record["held_out"]["seed"]) < record["results"]["top1"] - 3


def test_the_record_tells_of_these_weights(name, model, record):
    assert record["training"]["model"] == name
    assert record["parameters"] == sum(p.numel() for p in model.parameters())
    assert record["training"]["seed"] != record["held_out"]["seed"]


@pytest.mark.parametrize("question", [micro_architecture, micro_weights, micro_record])
def test_another_name_is_refused_with_those_there_are(question):
    with pytest.raises(PsaqError, match="not bundled; the bundled ones are micro_vit, micro_swin"):
        question("micro_mixer")


def _rounded(model, levels):
    """A copy whose linear weights are rounded to ``2 levels + 1`` values per tensor."""
    source = micro_architecture(model.psaq_source.name)
    copy = build_model(ModelSource("coarse", *source))
    copy.load_state_dict(model.state_dict())
    for module in copy.modules():
        if isinstance(module, nn.Linear):
            step = module.weight.detach().abs().max() / levels
            module.weight.data = (module.weight.data / step).round() * step
    return copy

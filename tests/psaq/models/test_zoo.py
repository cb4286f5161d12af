"""Loading models: names, local files, and what is refused."""

import json
from dataclasses import asdict

import pytest
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import save_file
from torch import nn

from psaq.errors import PsaqError
from psaq.models.zoo import (
    TABLE1_MODELS,
    ModelSource,
    build_model,
    data_config,
    load_model,
    model_source,
    named_source,
)

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 10}


@pytest.fixture
def weights(tmp_path, vit):
    path = tmp_path / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in vit.state_dict().items()}, path)
    return path


def test_local_weights_load(vit, weights):
    model = load_model("vit_tiny_patch16_224", weights, **SMALL)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(images), vit(images))
    assert not model.training


def test_a_module_comes_back_as_it_is(vit):
    assert load_model(vit) is vit


def test_wrappers_are_opened_and_the_type_stays(vit, capsys):
    assert load_model(nn.DataParallel(vit.half())) is vit
    assert next(vit.parameters()).dtype == torch.half
    assert "took the VisionTransformer out of DataParallel" in capsys.readouterr().err


def test_a_built_module_takes_no_options(vit):
    with pytest.raises(PsaqError, match="num_classes: the VisionTransformer is built already"):
        load_model(vit, num_classes=3)


def test_what_is_neither_name_nor_module_is_named():
    with pytest.raises(PsaqError, match="model 5: must be a name"):
        load_model(5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {"num_classes": 0}),
        ("swin_tiny_patch4_window7_224", {"img_size": (64, 96), "in_chans": 1, "num_classes": 3}),
    ],
)
def test_a_module_timm_built_for_its_user_has_a_source(name, options):
    model = timm.create_model(name, **options).eval()
    rebuilt = build_model(ModelSource(**json.loads(json.dumps(asdict(model_source(model))))))
    rebuilt.load_state_dict(model.state_dict())
    images = torch.rand(1, data_config(model).channels, *data_config(model).image_size)
    assert torch.equal(rebuilt(images), model(images))


def test_a_module_that_pools_otherwise_has_no_source():
    """Its weights have the same shapes, its output has not."""
    assert model_source(timm.create_model("vit_tiny_patch16_224", depth=12, num_classes=0, global_pool="")) is None


def test_a_source_of_an_earlier_version_is_timms():
    assert ModelSource("a", "vit_tiny_patch16_224", {}).kind == "timm"


def test_the_pinned_tags_are_known_to_timm():
    for name in TABLE1_MODELS:
        source = named_source(name)
        assert data_config(build_model(source)).image_size == (224, 224)


def test_preprocessing_is_the_models_own():
    augreg = data_config(build_model(named_source("vit_small")))
    deit = data_config(build_model(named_source("deit_tiny")))
    assert augreg.mean == (0.5, 0.5, 0.5)
    assert deit.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(("name", "options"), [("vit_tiny_patch16_224", SMALL), ("deit_tiny", {"num_classes": 7})])
def test_a_source_builds_the_same_shapes(name, options):
    model = build_model(named_source(name, options))
    again = build_model(model_source(model))
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_a_module_timm_cannot_build_again_has_no_source(vit):
    assert model_source(vit) is None


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(PsaqError, match="deit_tiny"):
        load_model("resnet_of_the_day")


def test_no_network_and_no_file_names_both_ways_out(monkeypatch, tmp_path):
    def unreachable(*_args, **_options):
        raise OSError("no route")

    monkeypatch.setattr("socket.getaddrinfo", unreachable)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(PsaqError, match=r"network.*--weights"):
        load_model("swin_small")


def test_what_the_hub_answers_is_said(monkeypatch):
    def absent(*_args, **_options):
        raise EntryNotFoundError("404 Client Error: Entry Not Found\nfor url: https://hub.example")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", absent)
    with pytest.raises(PsaqError, match=r"hub does not give .*404 Client Error: Entry Not Found\. .*--weights FILE$"):
        load_model("swin_small")


def test_weights_of_another_size_are_named(weights):
    with pytest.raises(PsaqError, match=r"head\.weight is \(10, 48\), not \(11, 48\).*--num-classes"):
        load_model("vit_tiny_patch16_224", weights, **{**SMALL, "num_classes": 11})


def test_nan_weights_are_named(vit, tmp_path):
    tensors = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    tensors["blocks.1.mlp.fc1.weight"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "nan.safetensors")
    with pytest.raises(PsaqError, match=r"blocks\.1\.mlp\.fc1\.weight holds NaN"):
        load_model("vit_tiny_patch16_224", tmp_path / "nan.safetensors", **SMALL)


def test_a_truncated_file_is_refused(weights):
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(PsaqError, match=r"weights\.safetensors.*truncated"):
        load_model("vit_tiny_patch16_224", weights, **SMALL)


def test_a_file_that_holds_something_else_is_refused(tmp_path):
    """timm's translation of old checkpoints trips over packed weights of two dimensions."""
    save_file({"patch_embed.proj.weight": torch.zeros(4, 8)}, tmp_path / "packed.safetensors")
    with pytest.raises(PsaqError, match=r"packed\.safetensors: does not fit"):
        load_model("micro_swin", tmp_path / "packed.safetensors")


def test_options_timm_refuses_are_named():
    with pytest.raises(PsaqError, match="no_such_option"):
        load_model("vit_tiny_patch16_224", "any.safetensors", no_such_option=1)

"""Models of transformers: loaded from folders, built again, refused by name."""

import json
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from psaq.errors import PsaqError
from psaq.models.calling import logits_of, run, takes, tensors_of
from psaq.models.data import data_config
from psaq.models.heads import classes_or_none
from psaq.models.zoo import ModelSource, build_model, load_model, model_source, named_source

BASE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
STAGES = {"image_size": 64, "patch_size": 2, "embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4, "window_size": 4}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 99}


def _vit(**options):
    torch.manual_seed(0)
    return transformers.ViTForImageClassification(transformers.ViTConfig(**BASE, num_labels=7, **options)).eval()


def _swin():
    return transformers.SwinModel(transformers.SwinConfig(**STAGES)).eval()


def _upernet():
    backbone = transformers.SwinConfig(**STAGES, out_features=["stage1", "stage2", "stage3", "stage4"])
    config = transformers.UperNetConfig(
        backbone_config=backbone, hidden_size=8, pool_scales=[1], use_auxiliary_head=False
    )
    return transformers.UperNetForSemanticSegmentation(config).eval()


def _yolos():
    config = transformers.YolosConfig(**{**BASE, "image_size": [32, 48]}, num_detection_tokens=3)
    return transformers.YolosForObjectDetection(config).eval()


def _clip():
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = transformers.CLIPConfig(text_config={**TEXT, **ends}, vision_config=BASE, projection_dim=8)
    return transformers.CLIPModel(config).eval()


@pytest.fixture(autouse=True)
def _without_bars():
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture
def folder(tmp_path):
    _vit().save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def _tensors(model):
    config = data_config(model)
    images = torch.randn(1, config.channels, *config.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return tensors_of(run(model, images))


def _again(source):
    return build_model(ModelSource(**json.loads(json.dumps(asdict(source)))))


@pytest.mark.parametrize("build", [_vit, _swin, _upernet, _yolos])
def test_a_folder_loads_and_its_source_builds_the_same(build, tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    loaded = load_model(f"transformers:{tmp_path}")
    rebuilt = _again(loaded.psaq_source)
    rebuilt.load_state_dict(model.state_dict())
    expected = _tensors(model)
    for other in (loaded, rebuilt):
        assert type(other) is type(model)
        assert not other.training
        assert all(torch.equal(a, b) for a, b in zip(expected, _tensors(other), strict=True))


@pytest.mark.parametrize("build", [_vit, _upernet])
def test_a_model_built_by_its_user_has_a_source(build):
    model = build()
    rebuilt = _again(model_source(model))
    rebuilt.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(_tensors(model), _tensors(rebuilt), strict=True))


def test_a_changed_model_has_no_source():
    model = _vit()
    model.classifier = torch.nn.Linear(16, 9)
    assert model_source(model) is None


def test_a_class_of_ones_own_has_no_source():
    class Own(transformers.ViTForImageClassification):
        pass

    assert model_source(Own(transformers.ViTConfig(**BASE))) is None


def test_a_source_names_no_place_and_no_code(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))
    source = load_model(f"transformers:{folder}").psaq_source
    assert str(folder) not in json.dumps(source.options)
    assert "evil" not in json.dumps(source.options)


def test_the_size_comes_from_the_configuration_and_the_rest_from_the_model_type():
    config = data_config(_vit())
    assert (config.image_size, config.mean, config.interpolation) == ((32, 32), (0.5,) * 3, "bilinear")
    assert data_config(_vit(num_channels=1)).mean == (0.5,)
    segformer = transformers.SegformerConfig(
        hidden_sizes=[8] * 4, depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8
    )
    config = data_config(transformers.SegformerForSemanticSegmentation(segformer))
    assert (config.image_size, config.mean) == ((512, 512), (0.485, 0.456, 0.406))
    assert data_config(_yolos()).image_size == (32, 48)
    assert data_config(_upernet()).image_size == (64, 64)


MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
NORMALISED = {"image_mean": MEAN, "image_std": STD, "do_normalize": True}


@pytest.mark.parametrize(
    ("processor", "size", "mean", "std", "crop_pct"),
    [
        ({"size": {"height": 40, "width": 48}, **NORMALISED}, (40, 48), MEAN, STD, 1),
        ({"size": {"height": 40, "width": 48}, "do_normalize": False}, (40, 48), [0] * 3, [1] * 3, 1),
        (
            {"size": {"height": 32, "width": 32}, "do_rescale": False, "image_mean": [51] * 3, "image_std": [102] * 3},
            (32, 32),
            [0.2] * 3,
            [0.4] * 3,
            1,
        ),
    ],
)
def test_an_image_processor_says_what_images_are(folder, processor, size, mean, std, crop_pct):
    transformers.ViTImageProcessor(**processor).save_pretrained(folder)
    config = data_config(load_model(f"transformers:{folder}"))
    assert (config.image_size, config.crop_pct) == (size, crop_pct)
    assert config.mean == pytest.approx(mean)
    assert config.std == pytest.approx(std)


def test_a_centre_crop_is_the_size(folder):
    transformers.CLIPImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, resample=2
    ).save_pretrained(folder)
    config = data_config(load_model(f"transformers:{folder}"))
    assert (config.image_size, config.crop_pct, config.interpolation) == ((32, 32), 0.8, "bilinear")


def test_a_shortest_edge_is_a_square(folder):
    transformers.YolosImageProcessor(size={"shortest_edge": 48, "longest_edge": 90}).save_pretrained(folder)
    assert data_config(load_model(f"transformers:{folder}")).image_size == (48, 48)


def test_of_a_model_that_reads_too_the_part_that_sees_is_taken(tmp_path):
    model = _clip()
    model.save_pretrained(tmp_path)
    loaded = load_model(f"transformers:{tmp_path}")
    assert type(loaded) is transformers.CLIPVisionModel
    assert all(torch.equal(a, b) for a, b in zip(_tensors(model.vision_model), _tensors(loaded), strict=True))


def test_a_model_that_only_reads_and_sees_at_once_is_refused(folder):
    config = transformers.LlavaConfig(architectures=["LlavaForConditionalGeneration"])
    config.save_pretrained(folder)
    with pytest.raises(PsaqError, match="LlavaForConditionalGeneration needs text beside images"):
        load_model(f"transformers:{folder}")


def test_without_a_named_class_automodels_is_taken(tmp_path):
    _swin().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("architectures")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert type(load_model(f"transformers:{tmp_path}")) is transformers.SwinModel


def test_classifiers_have_classes_and_others_none():
    assert classes_or_none(_vit()) == 7
    assert [classes_or_none(build()) for build in (_swin, _upernet, _yolos)] == [None] * 3
    model = _vit()
    assert takes(model) == "pixel_values"
    assert logits_of(run(model, torch.zeros(2, 3, 32, 32))).shape == (2, 7)


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16])
def test_the_weights_keep_their_type(tmp_path, dtype):
    _vit().to(dtype).save_pretrained(tmp_path)
    loaded = load_model(f"transformers:{tmp_path}")
    assert loaded.dtype == _again(loaded.psaq_source).dtype == dtype


def test_options_are_the_configurations(tmp_path, folder):
    loaded = load_model(f"transformers:{folder}", folder / "model.safetensors", attention_probs_dropout_prob=0.5)
    assert loaded.config.attention_probs_dropout_prob == 0.5
    with pytest.raises(PsaqError, match="ViTConfig has no depth; leave depth out"):
        load_model(f"transformers:{folder}", depth=3)
    with pytest.raises(PsaqError, match=r"classifier\.bias is \(7,\), not \(9,\)"):
        load_model(f"transformers:{folder}", num_classes=9)


def test_a_pickles_tensors_are_read_where_it_is_named(folder):
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(PsaqError, match=r"pickled weights alone \(pytorch_model\.bin\); name the file with --weights"):
        load_model(f"transformers:{folder}")
    loaded = load_model(f"transformers:{folder}", folder / "pytorch_model.bin")
    assert all(torch.equal(a, b) for a, b in zip(_tensors(_vit()), _tensors(loaded), strict=True))


def test_names_of_earlier_versions_are_translated(folder, tmp_path):
    """transformers 4 had a level more; 5 knows how to drop it."""
    old = {name.replace("vit.layers.", "vit.encoder.layer."): tensor for name, tensor in _vit().state_dict().items()}
    old = {name.replace(".attention.q_proj.", ".attention.attention.query."): old[name] for name in old}
    old = {name.replace(".attention.k_proj.", ".attention.attention.key."): old[name] for name in old}
    old = {name.replace(".attention.v_proj.", ".attention.attention.value."): old[name] for name in old}
    old = {name.replace(".attention.o_proj.", ".attention.output.dense."): old[name] for name in old}
    old = {name.replace(".mlp.fc1.", ".intermediate.dense."): old[name] for name in old}
    old = {name.replace(".mlp.fc2.", ".output.dense."): old[name] for name in old}
    assert old.keys() != _vit().state_dict().keys()
    torch.save(old, tmp_path / "old.bin")
    loaded = load_model(f"transformers:{folder}", tmp_path / "old.bin")
    assert all(torch.equal(a, b) for a, b in zip(_tensors(_vit()), _tensors(loaded), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("classifier.bias"), r"do not fit: classifier\.bias is missing"),
        (lambda tensors: tensors.update(extra=torch.ones(1)), "do not fit: extra is left over"),
    ],
)
def test_weights_that_do_not_fit_are_listed(folder, change, message):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(PsaqError, match=message):
        load_model(f"transformers:{folder}")


def _config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["MyViT"]}, "transformers has no model class MyViT"),
        ({"architectures": ["PreTrainedModel"]}, "transformers has no model class PreTrainedModel"),
        ({"architectures": ["ViTConfig"]}, "transformers has no model class ViTConfig"),
        ({"model_type": "mine"}, "of a model type that this transformers does not know"),
        (
            {"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}},
            "needs code from its own repository, which psaq never runs",
        ),
    ],
)
def test_a_model_that_transformers_does_not_know_is_refused(folder, changes, message):
    _config(folder, **changes)
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    with pytest.raises(PsaqError, match=message):
        load_model(f"transformers:{folder}")
    assert not (folder / "ran").exists()


def test_a_damaged_folder_is_named(folder):
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(PsaqError, match=r"transformers cannot load it \(.*\); mend the folder"):
        load_model(f"transformers:{folder}")
    (folder / "config.json").write_text("{")
    with pytest.raises(PsaqError, match=f"model 'transformers:{folder}': "):
        load_model(f"transformers:{folder}")


@pytest.mark.parametrize("place", ["", "/no/such/folder", "./nowhere", "a/b/c"])
def test_a_folder_that_is_not_there_is_named(place):
    with pytest.raises(PsaqError, match="there is no such folder"):
        load_model(f"transformers:{place}")


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(PsaqError, match=r"the folder has no config\.json"):
        load_model(f"transformers:{tmp_path}")


def test_without_weights_the_folder_is_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(PsaqError, match=r"the folder has no \.safetensors file"):
        load_model(f"transformers:{folder}")
    assert named_source(f"transformers:{folder}").architecture == "ViTForImageClassification"


def test_no_network_names_both_ways_out(monkeypatch):
    monkeypatch.setattr("psaq.models.transformers_hub.hub_can_be_found", lambda: False)
    with pytest.raises(PsaqError, match="hub cannot be reached; connect once, or name a folder"):
        load_model("transformers:no-one/no-model")


def test_a_source_of_anything_but_transformers_models_is_refused():
    for name in ("Trainer", "PreTrainedModel", "os", "no_such_model"):
        with pytest.raises(PsaqError, match=f"transformers has no model '{name}'"):
            build_model(ModelSource("x", name, {"config": {}}, "transformers"))
    with pytest.raises(PsaqError, match="'onnx' builds it, which is unknown here"):
        build_model(ModelSource("x", "x", {}, "onnx"))


def test_a_source_with_a_broken_configuration_is_refused():
    config = {**BASE, "num_hidden_layers": "two"}
    with pytest.raises(PsaqError, match="transformers cannot build ViTModel from its configuration"):
        build_model(ModelSource("x", "ViTModel", {"config": config}, "transformers"))


def test_a_missing_transformers_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PsaqError, match=r"pip install 'psaq\[transformers\]'"):
        load_model("transformers:google/vit-base-patch16-224")


def test_psaq_and_timm_models_do_without_transformers():
    code = "import sys, psaq; psaq.load_model('micro_vit'); sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

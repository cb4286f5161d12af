"""Folders that psaq and transformers both load."""

import importlib.util
import json
import sys
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.quantizers import auto

import psaq
from psaq.errors import PsaqError
from psaq.files import load_tensors, save_tensors
from psaq.models.calling import run, tensors_of
from psaq.models.data import data_config
from psaq.quantization.hugging_face.registration import register_with_transformers
from psaq.quantization.stored import KIND

BASE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
STAGES = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1] * 2, "num_heads": [1] * 2, "window_size": 4}
RECIPE = psaq.Recipe.paper(weights=4, activations=8)
ACCURATE = replace(psaq.Recipe.accurate(weights=4, activations=8), collages=0, flat_copies=0)


def _vit():
    return transformers.ViTForImageClassification(transformers.ViTConfig(**BASE, num_labels=7))


def _swin():
    return transformers.SwinForImageClassification(transformers.SwinConfig(**STAGES, num_labels=7))


def _swin_v2():
    return transformers.Swinv2Model(transformers.Swinv2Config(**STAGES))


def _dino():
    config = transformers.Dinov2WithRegistersConfig(**BASE, num_register_tokens=2)
    return transformers.Dinov2WithRegistersModel(config)


def _siglip():
    return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**BASE))


def _quantised(build, recipe=RECIPE):
    torch.manual_seed(0)
    return psaq.quantize(build().eval(), _images(), recipe)


def _images(dtype=torch.float32):
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(dtype)


def _answers(model):
    with torch.no_grad():
        return tensors_of(run(model, _images(next(model.parameters()).dtype)))


def _same(a, b):
    return all(torch.equal(x, y) and x.isfinite().all() for x, y in zip(_answers(a), _answers(b), strict=True))


@pytest.fixture(autouse=True)
def _without_bars():
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def quantised_vit():
    return _quantised(_vit, ACCURATE)


@pytest.fixture
def folder(quantised_vit, tmp_path):
    psaq.save(quantised_vit, tmp_path / "vit")
    return tmp_path / "vit"


def _from_pretrained(folder, **options):
    return transformers.AutoModelForImageClassification.from_pretrained(folder, **options)


@pytest.mark.parametrize(
    ("build", "auto_class"),
    [
        (_vit, transformers.AutoModelForImageClassification),
        (_swin, transformers.AutoModelForImageClassification),
        (_swin_v2, transformers.AutoModel),
        (_dino, transformers.AutoModel),
        (_siglip, transformers.AutoModel),
    ],
)
def test_all_ways_to_load_give_the_saved_models_outputs(build, auto_class, tmp_path, capfd):
    qmodel = _quantised(build)
    psaq.save(qmodel, tmp_path)
    capfd.readouterr()
    for load in (psaq.load, auto_class.from_pretrained, type(qmodel).from_pretrained):
        assert _same(load(tmp_path), qmodel)
    assert capfd.readouterr() == ("", "")


def test_weights_in_groups_come_back_as_they_were(tmp_path):
    wide = {**BASE, "hidden_size": 48, "intermediate_size": 96}
    config = transformers.ViTConfig(**wide, num_labels=7)
    qmodel = _quantised(lambda: transformers.ViTForImageClassification(config), replace(RECIPE, group=32))
    psaq.save(qmodel, tmp_path / "one")
    loaded = _from_pretrained(tmp_path / "one")
    loaded.save_pretrained(tmp_path / "two")
    for model in (loaded, _from_pretrained(tmp_path / "two"), psaq.load(tmp_path / "two")):
        assert _same(model, qmodel)
        assert model.psaq_recipe.group == 32


def test_a_folder_holds_integers_and_nothing_to_run(folder):
    assert sorted(file.name for file in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    tensors = load_file(folder / "model.safetensors")
    assert tensors["vit.layers.0.mlp.fc1.weight"].dtype == torch.uint8
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["ViTForImageClassification"]
    assert config["quantization_config"]["quant_method"] == "psaq"
    assert not {"auto_map", "_name_or_path"} & config.keys()


def test_the_image_processor_does_what_the_model_was_told(tmp_path):
    model = psaq.describe(_vit(), mean=(0.4, 0.5, 0.6), std=0.25).eval()
    psaq.save(psaq.quantize(model, _images(), RECIPE), tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    assert list(processor.image_mean) == [0.4, 0.5, 0.6]
    assert (processor.size["height"], processor.size["width"]) == (32, 32)


def test_psaqs_functions_take_the_loaded_model(folder, quantised_vit):
    loaded = _from_pretrained(folder)
    assert loaded.psaq_recipe == ACCURATE
    assert data_config(loaded) == data_config(quantised_vit)
    features = zip(psaq.patch_features(loaded, _images()), psaq.patch_features(quantised_vit, _images()), strict=True)
    assert all(torch.equal(a, b) for a, b in features)
    integers = (psaq.deploy(model) for model in (loaded, quantised_vit))
    assert torch.equal(*(_answers(model)[0] for model in integers))


def test_the_loaded_model_trains(folder):
    loaded = _from_pretrained(folder)
    loaded(_images()).logits.sum().backward()
    assert loaded.vit.layers[0].mlp.fc1.weight.grad.abs().sum() > 0


def test_save_pretrained_writes_such_a_folder_again(folder, quantised_vit, tmp_path):
    for model in (_from_pretrained(folder), psaq.load(folder), quantised_vit):
        model.save_pretrained(tmp_path / "again")
        assert _same(_from_pretrained(tmp_path / "again"), quantised_vit)
        assert _same(psaq.load(tmp_path / "again"), quantised_vit)


def test_a_file_stays_a_file(quantised_vit, tmp_path):
    psaq.save(quantised_vit, tmp_path / "vit.safetensors")
    assert _same(psaq.load(tmp_path / "vit.safetensors"), quantised_vit)


def test_the_type_can_be_chosen(folder):
    loaded = _from_pretrained(folder, dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    assert _same(loaded, psaq.load(folder).to(torch.bfloat16))


def test_half_precision_stays(tmp_path):
    torch.manual_seed(0)
    qmodel = psaq.quantize(_vit().eval().bfloat16(), _images(torch.bfloat16), RECIPE)
    psaq.save(qmodel, tmp_path)
    assert _from_pretrained(tmp_path).dtype == torch.bfloat16
    assert _same(_from_pretrained(tmp_path), qmodel)


def test_a_device_can_be_named(folder, quantised_vit):
    pytest.importorskip("accelerate")
    assert _same(_from_pretrained(folder, device_map="cpu"), quantised_vit)


def test_the_attention_is_that_of_the_quantised_model(tmp_path):
    def eager():
        return transformers.ViTForImageClassification._from_config(
            transformers.ViTConfig(**BASE), attn_implementation="eager"
        )

    qmodel = _quantised(eager)
    psaq.save(qmodel, tmp_path)
    assert _same(_from_pretrained(tmp_path), qmodel)
    with pytest.raises(PsaqError, match="quantised with 'eager'"):
        _from_pretrained(tmp_path, attn_implementation="sdpa")


def test_another_class_is_refused(folder):
    with pytest.raises(PsaqError, match=r"holds a ViTForImageClassification.* ViTModel"):
        transformers.AutoModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 3}, "upgrade psaq"),
        ({"recipe": None}, "has no recipe"),
        ({"recipe": {"weights": 4, "colour": 1}}, "recipe: is damaged"),
        ({"recipe": {"weights": 8}}, "another recipe than the config.json"),
    ],
)
def test_a_damaged_configuration_is_refused(change, message, folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"].update(change)
    path.write_text(json.dumps(config))
    with pytest.raises(PsaqError, match=message):
        _from_pretrained(folder)


def _without_a_tensor(path):
    tensors, header = load_tensors(path, KIND)
    del tensors["vit.layers.1.mlp.fc2.bias"]
    save_tensors(path, tensors, KIND, header)


def _truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def _of_another_kind(path):
    save_file(load_file(path), path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_a_tensor, "vit.layers.1.mlp.fc2.bias"),
        (_truncated, "truncated"),
        (_of_another_kind, "nothing that psaq wrote"),
    ],
)
@pytest.mark.parametrize("load", [_from_pretrained, psaq.load])
def test_damaged_weights_are_refused(load, damage, message, folder):
    damage(folder / "model.safetensors")
    with pytest.raises(PsaqError, match=message):
        load(folder)


def test_split_weights_are_refused(quantised_vit, tmp_path):
    quantised_vit.save_pretrained(tmp_path, max_shard_size=5000)
    for load in (_from_pretrained, psaq.load):
        with pytest.raises(PsaqError, match="split over"):
            load(tmp_path)


def test_quantising_on_the_way_is_refused(folder, tmp_path):
    _vit().save_pretrained(tmp_path / "float")
    config = _from_pretrained(folder).config.quantization_config
    with pytest.raises(PsaqError, match="calibration images"):
        _from_pretrained(tmp_path / "float", quantization_config=config)


def test_only_models_of_transformers_become_folders(tmp_path, vit):
    qmodel = psaq.quantize(vit, _images(), RECIPE)
    with pytest.raises(PsaqError, match="only models of transformers"):
        psaq.save(qmodel, tmp_path)


def test_psaq_registers_where_transformers_is_there_already(monkeypatch):
    monkeypatch.delitem(auto.AUTO_QUANTIZER_MAPPING, "psaq")
    monkeypatch.delitem(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, "psaq")
    register_with_transformers()
    register_with_transformers()
    assert "psaq" in auto.AUTO_QUANTIZER_MAPPING
    assert "psaq" in auto.AUTO_QUANTIZATION_CONFIG_MAPPING


def test_psaq_registers_when_transformers_comes_later(monkeypatch):
    for known in (auto.AUTO_QUANTIZER_MAPPING, auto.AUTO_QUANTIZATION_CONFIG_MAPPING):
        monkeypatch.delitem(known, "psaq")
    monkeypatch.setattr(
        sys, "meta_path", [finder for finder in sys.meta_path if type(finder).__name__ != "_AfterImport"]
    )
    with monkeypatch.context() as before:
        before.delitem(sys.modules, auto.__name__)
        register_with_transformers()
    assert "psaq" not in auto.AUTO_QUANTIZER_MAPPING
    spec = sys.meta_path[0].find_spec(auto.__name__, transformers.quantizers.__path__)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert "psaq" in auto.AUTO_QUANTIZER_MAPPING

"""``psaq quantize`` and ``psaq evaluate``: a file of integers, figures that repeat, one message for wrong input."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import timm
import torch
from noise_picture import noise_picture
from safetensors.torch import save_file

from psaq.commands.evaluate import Evaluate
from psaq.commands.options import ModelOptions
from psaq.commands.quantize import Quantize
from psaq.commands.sensitivity import MeasureSensitivity
from psaq.commands.synthesize import Synthesize
from psaq.errors import PsaqError
from psaq.evaluation import evaluate
from psaq.images.batches import gaussian_images
from psaq.images.imagenet import imagenet
from psaq.images.pictures import load_pictures, picture_files
from psaq.images.synthetic import SyntheticImages
from psaq.models.zoo import data_config
from psaq.program import run_command
from psaq.quantization.checkpoint import load
from psaq.quantization.model.points import live_points
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe
from psaq.quantization.sensitivity import sensitivity
from psaq.synthesis import SynthesisConfig


@pytest.fixture(autouse=True)
def small_model(monkeypatch, vit):
    monkeypatch.setattr(ModelOptions, "load", lambda _: vit)


@pytest.fixture
def photos(tmp_path):
    for index in range(10):
        folder = tmp_path / "photos" / f"class{index}"
        folder.mkdir(parents=True)
        for number in range(2):
            noise_picture((50, 40), 60 + index + number).save(folder / f"{number}.png")
    return tmp_path / "photos"


def scales(model):
    return {name: point.scale for name, point in live_points(model).items()}


def same_scales(one, other):
    return all(torch.equal(scale, scales(other)[name]) for name, scale in scales(one).items())


def test_noise_calibrates_on_what_gaussian_images_gives(vit, tmp_path, capsys):
    Quantize(
        precision="W4A6", recipe="paper", scope="matmul", gaussian=True, num_images=3, seed=5, out=tmp_path / "run"
    ).run()
    qmodel = load(tmp_path / "run" / "model.safetensors", vit)
    assert same_scales(qmodel, quantize(vit, gaussian_images(vit, 3, 5), Recipe.paper(4, 6, "matmul")))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["results"]["sizes"]["quantised"] == (tmp_path / "run" / "model.safetensors").stat().st_size
    assert "W4A6 (matmul)" in capsys.readouterr().out


def test_weights_in_groups_are_an_option(vit, tmp_path, capsys):
    Quantize(precision="W4A8", recipe="paper", group=32, gaussian=True, num_images=3, out=tmp_path / "run").run()
    qmodel = load(tmp_path / "run" / "model.safetensors", vit)
    assert same_scales(qmodel, quantize(vit, gaussian_images(vit, 3, 0), replace(Recipe.paper(4, 8), group=32)))
    printed = capsys.readouterr().out
    assert "groups of 32: 4.5 bits a weight" in printed
    assert "without weights in groups: patch_embed.proj: convolutions" in printed


def test_a_folder_gives_its_first_pictures(vit, photos, tmp_path):
    Quantize(recipe="paper", images=photos, num_images=3, crop_pct=0.9, out=tmp_path / "run").run()
    first = [photos / "class0" / "0.png", photos / "class0" / "1.png", photos / "class1" / "0.png"]
    assert picture_files([photos])[:3] == first
    expected = quantize(vit, load_pictures(first, vit, crop_pct=0.9), Recipe.paper())
    assert same_scales(load(tmp_path / "run" / "model.safetensors", vit), expected)


def test_a_run_of_synthesis_gives_its_images(vit, tmp_path):
    config = data_config(vit)
    images = SyntheticImages(torch.randn(4, 3, 32, 32), torch.arange(4), config.mean, config.std)
    images.save(tmp_path / "images")
    Quantize(recipe="paper", images=tmp_path / "images", out=tmp_path / "run").run()
    expected = quantize(vit, images, Recipe.paper())
    assert same_scales(load(tmp_path / "run" / "model.safetensors", vit), expected)


def test_how_many_images_are_taken_is_said_where_fewer_are_there(vit, photos, tmp_path, capsys):
    Quantize(recipe="paper", images=photos / "class0", num_images=3, out=tmp_path / "few").run()
    assert "class0: holds 2 images, fewer than 3; all are taken" in capsys.readouterr().err
    Quantize(recipe="paper", images=photos / "class0", num_images=2, out=tmp_path / "enough").run()
    assert "fewer" not in capsys.readouterr().err


def test_a_runs_figures_are_no_pictures_to_calibrate_on(vit, tmp_path):
    Synthesize(synthesis=SynthesisConfig(num_images=1, steps=1), out=tmp_path / "runs" / "made").run()
    with pytest.raises(PsaqError, match=r"runs: holds a run of psaq and its figures; name .*runs/made$"):
        Quantize(images=tmp_path / "runs", out=tmp_path / "run").run()
    (tmp_path / "runs" / "made" / "images.safetensors").unlink()
    with pytest.raises(PsaqError, match=r"made: holds a run of psaq and its figures; name a folder of real pictures"):
        Quantize(images=tmp_path / "runs" / "made", out=tmp_path / "run").run()
    assert not (tmp_path / "run").exists()


def test_without_images_they_are_synthesised(vit, tmp_path, monkeypatch):
    monkeypatch.setattr(SynthesisConfig, "steps", 2)
    monkeypatch.setattr("psaq.commands.work.calibration.SynthesisConfig", lambda **o: SynthesisConfig(steps=2, **o))
    Quantize(num_images=2, out=tmp_path / "run").run()
    assert len(list((tmp_path / "run" / "images").glob("*.png"))) == 2
    assert load(tmp_path / "run" / "model.safetensors", vit)


def saved_recipe(folder, vit):
    return load(folder / "model.safetensors", vit).psaq_recipe


def test_recipes_scopes_and_overrides_go_by_their_options(vit, tmp_path):
    def recipe(name, **options):
        Quantize(gaussian=True, num_images=2, out=tmp_path / name, **options).run()
        return saved_recipe(tmp_path / name, vit)

    assert recipe("usual", precision="W4A8") == Recipe.accurate(4, 8)
    assert recipe("linear", scope="linear") == Recipe.accurate(8, 8, "linear")
    assert recipe("paper", recipe="paper", faithful=True) == Recipe.paper(8, 8, faithful=True)
    overrides = ("blocks.*.mlp.fc2=W8A6", "head=w3a8")
    expected = replace(Recipe.accurate(4, 8), overrides=(("blocks.*.mlp.fc2", 8, 6), ("head", 3, 8)))
    assert recipe("overrides", precision="W4A8", override=overrides) == expected


def test_options_are_read_from_the_command_line(vit, tmp_path):
    options = ["--gaussian", "--num-images", "2", "--precision", "W4A8", "--out", str(tmp_path / "run")]
    run_command(Quantize, [*options, "--override", "*.fc2=W8A8", "--override", "head=W5A8", "--recipe", "paper"])
    assert saved_recipe(tmp_path / "run", vit).overrides == (("*.fc2", 8, 8), ("head", 5, 8))


def test_a_budget_is_kept_and_what_it_came_to_is_said(vit, tmp_path, capsys):
    Quantize(gaussian=True, num_images=2, budget="80%", out=tmp_path / "run").run()
    assert "weights: " in capsys.readouterr().out
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    recipe = saved_recipe(tmp_path / "run", vit)
    assert record["results"]["overrides"] == [list(override) for override in recipe.overrides]
    assert recipe.overrides
    assert (recipe.rotate, recipe.collages) == ("streams", 2), "the parts that low bits need"
    limit = (tmp_path / "run" / "model.safetensors").stat().st_size + 500
    Quantize(gaussian=True, num_images=2, budget=f"{limit / 1e3}kB", out=tmp_path / "again").run()
    assert (tmp_path / "again" / "model.safetensors").stat().st_size <= limit


def test_a_budget_too_small_is_refused_before_the_work_and_a_larger_one_goes_into_the_same_folder(vit, tmp_path):
    with pytest.raises(PsaqError, match=r"cannot be that small.*Give at least that"):
        Quantize(num_images=2, budget="1kB", out=tmp_path / "run").run()
    assert not (tmp_path / "run").exists()
    Quantize(gaussian=True, num_images=2, budget="90%", out=tmp_path / "run").run()


def test_sensitivity_writes_a_table_and_a_picture(vit, tmp_path, capsys):
    MeasureSensitivity(gaussian=True, num_images=2, out=tmp_path / "run").run()
    expected = sensitivity(vit, gaussian_images(vit, 2), Recipe.accurate(4, 8))
    rows = (tmp_path / "run" / "sensitivity.csv").read_text().splitlines()
    assert len(rows) == 1 + len(expected.layers)
    assert (tmp_path / "run" / "sensitivity.png").stat().st_size > 1000
    said = capsys.readouterr().out
    assert "blocks.1.mlp.fc2" in said
    assert f"most sensitive: {expected.worst_first()[0].layer}, " in said
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["results"]["most_sensitive"][0] == expected.worst_first()[0].layer


def test_a_run_names_the_device_that_its_model_is_on(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("psaq.runs.device_name", lambda device: f"named {device}")
    calibrating = {"gaussian": True, "num_images": 2, "recipe": "paper"}
    runs = {
        "quantize": Quantize(**calibrating, out=tmp_path / "quantize"),
        "sensitivity": MeasureSensitivity(**calibrating, out=tmp_path / "sensitivity"),
        "evaluate": Evaluate(images=photos, out=tmp_path / "evaluate"),
        "synthesize": Synthesize(synthesis=SynthesisConfig(num_images=1, steps=1), out=tmp_path / "synthesize"),
    }
    for name, command in runs.items():
        command.run()
        assert json.loads((tmp_path / name / "run.json").read_text())["device"] == "named cpu"


def test_evaluate_prints_and_records_what_the_function_returns(vit, photos, tmp_path, capsys):
    Quantize(precision="W4A4", gaussian=True, num_images=2, out=tmp_path / "run").run()
    Evaluate(quantized=tmp_path / "run", images=photos, batch_size=7, out=tmp_path / "report").run()
    qmodel = load(tmp_path / "run" / "model.safetensors", vit)
    expected = evaluate(qmodel, imagenet(photos, vit), vit)
    results = json.loads((tmp_path / "report" / "run.json").read_text())["results"]
    assert results["quantized"] == pytest.approx(expected.as_dict(), rel=1e-4)
    assert results["fp"]["agreement"] is None
    assert str(expected) in capsys.readouterr().out


def test_the_full_precision_model_may_be_measured_alone(photos, capsys):
    Evaluate(images=photos).run()
    assert "agreement" not in capsys.readouterr().out


def test_bundled_models_are_measured_on_scenes(monkeypatch, capsys):
    sized = timm.create_model("vit_tiny_patch16_224", img_size=64, embed_dim=12, depth=1, num_classes=10)
    monkeypatch.setattr(ModelOptions, "load", lambda _: sized)
    Evaluate(scenes=6).run()
    assert "(6 images)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (Quantize(precision="8"), "W4A8"),
        (Quantize(precision="W1A8"), "weights"),
        (Quantize(precision="W8A9"), "activations"),
        (Quantize(gaussian=True, num_images=0), "--num-images 0"),
        (Quantize(images="photos", num_images=-1), "--num-images -1"),
        (Quantize(gaussian=True, crop_pct=0.9), "--crop-pct: does nothing"),
        (Quantize(crop_pct=0.9), "--crop-pct: does nothing"),
        (Quantize(gaussian=True, images="/nowhere"), "--gaussian"),
        (Quantize(faithful=True), "--recipe paper"),
        (Quantize(override=("blocks.*",)), "PATTERN=W8A8"),
        (Quantize(override=("blocks.*=8",)), "W4A8"),
        (Quantize(override=("blocks.*=W9A8",)), "override blocks.*: 9"),
        (Quantize(gaussian=True, num_images=2, override=("block.*=W8A8",)), "fits no layer"),
        (Quantize(budget="small"), "3.5MB"),
        (Quantize(gaussian=True, num_images=2, budget="1kB"), "cannot be that small"),
        (Evaluate(ModelOptions(model="deit_tiny")), "--images"),
    ],
)
def test_wrong_options_are_named(command, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PsaqError) as raised:
        command.run()
    assert message in str(raised.value)


def test_files_that_are_not_there_are_named(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PsaqError, match="nowhere"):
        Quantize(images=tmp_path / "nowhere").run()
    with pytest.raises(PsaqError, match="nowhere"):
        Evaluate(images=photos, quantized=tmp_path / "nowhere").run()


def test_wrong_options_leave_no_folder_behind(tmp_path):
    out = tmp_path / "run"
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"damaged")
    unsound = ({"override": ("block.*=W8A8",)}, {"images": tmp_path / "nowhere"}, {"images": damaged})
    unsound += ({"crop_pct": 1.5}, {"num_images": 0})
    for wrong in unsound:
        for command in (Quantize, MeasureSensitivity):
            with pytest.raises(PsaqError):
                command(**wrong, out=out).run()
    assert not out.exists()


def test_a_run_folder_of_another_configuration_is_refused(tmp_path):
    Quantize(gaussian=True, num_images=2, out=tmp_path / "run").run()
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(PsaqError, match="precision"):
        Quantize(precision="W4A8", gaussian=True, num_images=2, out=tmp_path / "run").run()
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


def test_the_command_line_as_a_process(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=32)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    model.blocks[3].mlp.fc1.weight.data[0, 0] = torch.nan
    save_file(model.state_dict(), tmp_path / "nan.safetensors")
    right = psaq_quantize(tmp_path / "weights.safetensors", tmp_path / "run")
    assert right.returncode == 0, right.stderr
    assert load(tmp_path / "run" / "model.safetensors")(torch.randn(1, 3, 32, 32)).shape == (1, 10)
    wrong = psaq_quantize(tmp_path / "nan.safetensors", tmp_path / "other")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("psaq: error:")
    assert "blocks.3.mlp.fc1.weight" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def psaq_quantize(weights, out):
    options = ["--model", "vit_tiny_patch16_224", "--num-classes", "10", "--image-size", "32", "--device", "cpu"]
    calibration = ["--gaussian", "--num-images", "2", "--precision", "W4A8", "--recipe", "paper"]
    command = [*options, *calibration, "--weights", str(weights), "--out", str(out)]
    return subprocess.run(
        [sys.executable, "-m", "psaq", "quantize", *command], capture_output=True, text=True, timeout=300
    )

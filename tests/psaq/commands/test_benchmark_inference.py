"""``psaq benchmark inference``: every variant and every layer is timed, and the figures belong together."""

import io
import json
from contextlib import redirect_stdout
from typing import Any

import pytest
import torch
import torchvision
from small_models import small_vit
from torch import nn

from psaq import PsaqError, Recipe, gaussian_images, load_model, quantize
from psaq.benchmarks.inference import variants_of
from psaq.commands.benchmark_inference import BenchmarkInference
from psaq.commands.options import ModelOptions
from psaq.commands.work import benchmark_inference as work
from psaq.quantization.deployment import runtimes
from psaq.quantization.deployment.runtimes import installed


@pytest.fixture(scope="module")
def results(tmp_path_factory: Any) -> dict[str, Any]:
    vit, out, said = small_vit(), tmp_path_factory.mktemp("benchmark") / "run", io.StringIO()
    vit.pretrained_cfg = {**vit.pretrained_cfg, "input_size": (3, 32, 32)}
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(said):
        patched.setattr(ModelOptions, "load", lambda _: vit)
        patched.setattr(runtimes, "_SPINNING", 0.0)
        BenchmarkInference(images=(1, 3), repeats=2, precision="W4A8", out=out).run()
    return {**json.loads((out / "run.json").read_text())["results"], "said": said.getvalue()}


def test_every_variant_is_timed_at_every_batch(results: dict[str, Any]) -> None:
    timed = [(row["images"], row["variant"]) for row in results["whole"]]
    variants = ["float32", "bfloat16", "integers + float32", "integers + bfloat16"]
    variants += [f"{runtime}, {kind}" for runtime in installed() for kind in ("float32", "integers")]
    assert timed == [(count, name) for count in (1, 3) for name in variants]
    for row in results["whole"]:
        assert row["images_per_second"] == pytest.approx(1e3 * row["images"] / row["milliseconds"])
        assert row["speedup"] == pytest.approx(1) or row["variant"] != "float32"


def test_every_kind_of_layer_is_timed_with_its_shape(results: dict[str, Any]) -> None:
    layers = {row["layer"]: row for row in results["layers"]["3"]}
    assert {name: row["count"] for name, row in layers.items()} == {
        "patch_embed.proj": 1,
        "blocks.*.attn.qkv": 2,
        "blocks.*.attn.proj": 2,
        "blocks.*.mlp.fc1 + gelu": 2,
        "blocks.*.mlp.fc2": 2,
        "head": 1,
    }
    shape = [layers["blocks.*.attn.qkv"][size] for size in ("rows", "inputs", "outputs")]
    assert shape == [3 * 17, 48, 144]
    for row in layers.values():
        assert row["speedup"] == pytest.approx(row["float_us"] / row["integer_us"])
        assert row["tera_ops"] == pytest.approx(2e-6 * row["rows"] * row["inputs"] * row["outputs"] / row["integer_us"])


def test_the_tables_say_where_and_what(results: dict[str, Any]) -> None:
    assert "W4A8 (linear)" in results["said"]
    assert "threads" in results["said"]
    assert "8-bit dot products" in results["said"]
    assert results["said"].count("products in integers") == len(installed())
    assert results["said"].count("blocks.*.attn.qkv") == 2


def test_random_weights_need_no_download(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psaq.benchmarks.inference.installed", list)
    BenchmarkInference(ModelOptions("deit_tiny", image_size=32), images=(1,), repeats=1, random_weights=True).run()
    assert "blocks.*.mlp.fc1 + gelu" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"images": ()}, {"images": (0,)}])
def test_numbers_below_one_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(PsaqError, match="at least 1"):
        BenchmarkInference(**wrong)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(PsaqError):
        BenchmarkInference(precision="W9A8", images=(1,), repeats=1).run()


def ran(model: nn.Module, **options: Any) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ModelOptions, "load", lambda _: model)
        patched.setattr(runtimes, "_SPINNING", 0.0)
        BenchmarkInference(images=(1,), repeats=1, **options).run()


def test_a_model_that_no_file_holds_is_timed_without_the_runtimes(capsys: Any) -> None:
    pytest.importorskip("onnx")
    ran(load_model("micro_detector"))
    said = capsys.readouterr()
    assert "runtimes left out: " in said.out
    assert "bfloat16 left out: " in said.err, "which cannot choose boxes"
    with pytest.raises(PsaqError, match="name a part"):
        ran(load_model("micro_detector"), runtimes=True)


def test_runtimes_that_are_asked_for_and_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "installed", list)
    with pytest.raises(PsaqError, match=r"--runtimes: none is installed; run pip install .psaq\[onnx\]"):
        ran(load_model("micro_vit"), runtimes=True)


def test_torchs_own_attention_is_timed_layer_by_layer_and_float32_is_float32(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=7).eval().bfloat16()
    ran(model, runtimes=False, out=tmp_path / "run")
    layers = [row["layer"] for row in json.loads((tmp_path / "run" / "run.json").read_text())["results"]["layers"]["1"]]
    assert any("q_proj" in each for each in layers)
    (full, *_) = variants_of(model, _quantised(model), torch.float32, compiled=False).values()
    assert {parameter.dtype for parameter in full.parameters()} == {torch.float32}


def _quantised(model: nn.Module) -> nn.Module:
    return quantize(model, gaussian_images(model, 2), Recipe.paper(8, 8, scope="linear"))

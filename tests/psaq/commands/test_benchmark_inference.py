"""``psaq benchmark inference``: every variant and every layer is timed, and the figures belong together."""

import io
import json
from contextlib import redirect_stdout
from typing import Any

import pytest
from small_models import small_vit

from psaq import PsaqError
from psaq.commands.benchmark_inference import BenchmarkInference
from psaq.commands.options import ModelOptions
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

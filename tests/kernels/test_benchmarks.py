"""The benchmark scripts run, and write tables that hold what they promise; how fast, is not for a test to say."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "kernels" / "benchmarks"


def run(script: str, *options: str) -> subprocess.CompletedProcess[str]:
    """With one thread, and without the interpreter, in which nothing can be compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, str(BENCHMARKS / script), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


def rows(folder: Path, pattern: str) -> list[dict[str, str]]:
    (path,) = folder.glob(pattern)
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_density_beside_a_model_and_over_shapes(tmp_path: Path) -> None:
    options = ["--models", "swin_tiny", "--images", "1", "--most-gigabytes", "1", "--repeats", "1"]
    small = ["--timm-model", "deit_tiny_patch16_224", "--beside-images", "1", "--fast"]
    done = run("similarity_density.py", "--only", "shapes", "beside_model", *options, *small, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    shapes = {(row["contender"], row["pass"]) for row in rows(tmp_path, "*-shapes-*.csv")}
    contenders = ("this operation", "eager, 10 points")  # on the full grid the eager one takes more than a gigabyte
    assert shapes == {(name, kind) for name in contenders for kind in ("forward", "forward + backward")}
    beside = rows(tmp_path, "*-beside_model-*.csv")
    assert [row["what"] for row in beside] == ["model forward + backward", "this operation"]
    assert len(list(tmp_path.glob("*-shapes-*.png"))) == 1


def test_the_linear_layer_beside_its_peers(tmp_path: Path) -> None:
    done = run("quant_linear.py", "--models", "deit_small", "--images", "1", "--repeats", "1", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = rows(tmp_path, "*.csv")
    assert len({row["layer"] for row in found}) == 4
    assert {"float32", "bfloat16", "int_mm + epilogue", "W8A8 static", "W4A8 per token"} <= {
        row["variant"] for row in found
    }
    assert all(float(row["median_us"]) > 0 for row in found)
    assert len(list(tmp_path.glob("*.png"))) == 1


@pytest.mark.parametrize("formulation", ["direct", "nearest", "chebyshev"])
def test_formulations_as_kernels_compute_what_they_are_compared_for(formulation: str) -> None:
    """In Triton's interpreter, with few points, bins or terms, against the definition."""
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", FORMULATION, str(BENCHMARKS), formulation],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-5


FORMULATION = """
import sys

sys.path.insert(0, sys.argv[1])
import formulations_triton
import torch

name = sys.argv[2]
count = formulations_triton.KERNELS[name] = 16
generator = torch.Generator().manual_seed(0)
unit = torch.nn.functional.normalize(torch.randn(1, 70, 64, generator=generator), dim=-1)
samples = (unit.double() @ unit.double().mT).flatten().clamp(-1, 1)
launch, out = formulations_triton.launcher(name, unit)
launch()
order = torch.arange(count)[:, None]
expected = {
    "direct": torch.exp(-0.5 * ((samples - (order * 2 / 15 - 1)) * 100) ** 2).sum(1),
    "nearest": torch.bincount(((samples + 1) * 7 + 0.5).long(), minlength=count)[:15].double(),
    "chebyshev": torch.cos(order * samples.acos()).sum(1),
}[name]
print(float((out[0, : len(expected)] - expected).abs().max() / expected.abs().max()))
"""


def test_one_command_runs_every_step_and_reports_how_each_ended(tmp_path: Path) -> None:
    """Without a GPU: its tests skip, tuning refuses, the model runs on the CPU."""
    steps = ["tests", "tune", "inference"]
    done = run("on_gpu.py", "--out", str(tmp_path), "--model", "micro_vit", "--images", "1", "--only", *steps)
    ended = json.loads((tmp_path / "summary.json").read_text())
    assert [step["step"] for step in ended] == steps
    codes = {step["step"]: step["code"] for step in ended}
    assert codes["tests"] == codes["inference"] == 0, done.stdout
    if codes["tune"]:
        assert "no GPU" in (tmp_path / "tune.log").read_text()
        assert done.returncode == 1
    assert "passed" in (tmp_path / "tests.log").read_text() or "skipped" in (tmp_path / "tests.log").read_text()
    assert json.loads((tmp_path / "inference" / "run.json").read_text())["results"]["whole"]

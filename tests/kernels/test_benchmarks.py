"""The benchmark scripts run, and write tables that hold what they promise; how fast, is not for a test to say."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from psaq_kernels import tuning

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


ON_A_CPU = "needs a model on a GPU"


@pytest.mark.repeat
@pytest.mark.timeout(900)
def test_a_rehearsal_runs_every_stage_and_a_second_call_goes_on(tmp_path: Path) -> None:
    """At toy sizes on the CPU, in Triton's interpreter: all but the GPU itself. Budgets are for GPUs:
    here they are to end no stage."""
    pytest.importorskip("triton")
    first, second = tmp_path / "first", tmp_path / "second"
    early = ["check", "linear", "density", "inference", "synthesis", "tests", "tune"]
    done = run("on_gpu.py", "--rehearse", "--minutes", "60", "--out", str(first), "--only", *early)
    assert done.returncode == 0, done.stdout + done.stderr
    late = ["linear-tuned", "where", "profile"]
    again = ["--rehearse", "--minutes", "60", "--continue", str(first), "--out", str(second)]
    done = run("on_gpu.py", *again, "--only", "check", *late)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((second / "summary.json").read_text())
    assert {stage["stage"]: stage["verdict"] for stage in summary["stages"]} == dict.fromkeys(early + late, "done")
    assert summary["checks"]
    assert summary["wrong"] == []
    assert all(ON_A_CPU in row["refused"] for row in summary["refused"])
    assert summary["tests"]["skipped"] > 100
    assert summary["tuned"] == {"interpreter.json": 1}
    assert {row["what"] for row in summary["where"]} >= {"machine", "quant_linear", "profile of a synthesis"}
    files = [path for path in second.rglob("*") if path.is_file()]
    assert len(files) == 8
    assert {row["configuration"] for row in rows(second, "quant_linear.csv")} == {"default", "tuned"}
    assert {(row["variant"], row["way"]) for row in rows(second, "inference.csv")} >= {("W4A8", "compiled")}
    assert all(float(row["median_us"]) > 0 for row in rows(second, "similarity_density.csv"))
    assert all(row["torch"] == torch.__version__ for row in rows(second, "synthesis.csv"))
    assert tuning.read_table(second / "tuned" / "interpreter.json")

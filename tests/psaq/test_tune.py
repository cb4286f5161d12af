import subprocess
import sys
from pathlib import Path

import pytest
import torch

from psaq.errors import PsaqError
from psaq.tune import Tune, distinct_problems, table, tune_problem, workload
from psaq_kernels import tuner, tuning
from psaq_kernels.devices import DeviceLimits
from psaq_kernels.tunable import MachineRates

pytest.importorskip("triton")
LIMITS = DeviceLimits("Test GPU", "sm_90", 232448)


def test_workload_of_a_vit():
    shapes = workload("deit_tiny", 8)
    assert shapes.features == ((8, 1, 196, 64),) * 12
    assert (8 * 197, 576, 192) in shapes.linears
    assert (8, 1000, 192) in shapes.linears


def test_workload_of_a_swin():
    shapes = workload("swin_tiny", 2)
    assert shapes.features[0] == (2, 64, 49, 32)
    assert shapes.features[-1] == (2, 1, 49, 32)


def test_no_gpu_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(PsaqError, match="--target"):
        Tune(model=("micro_vit",)).run()


@pytest.mark.parametrize("options", [{"batch": 0}, {"target": "sm_1"}])
def test_bad_options_are_refused(options):
    with pytest.raises(PsaqError, match=next(iter(options))):
        Tune(**options)


def test_unknown_kernel_is_refused():
    with pytest.raises(PsaqError, match="similarity_density"):
        Tune(kernel=("nonsense",), target="sm_90").run()


def test_unknown_model_is_refused():
    with pytest.raises(PsaqError, match="resnet_nonsense"):
        Tune(model=("resnet_nonsense",), kernel=("similarity",), target="sm_90").run()


def test_same_buckets_are_tuned_once():
    from psaq_kernels.density_tunables import TUNABLES

    one, two = workload("deit_tiny", 8), workload("deit_small", 8)
    assert len(distinct_problems(list(TUNABLES), [one, two])) == len(TUNABLES)
    assert len(distinct_problems(list(TUNABLES), [one, workload("swin_tiny", 8)])) == 2 * len(TUNABLES)


def test_a_tuned_problem_is_written_and_reported(tmp_path, monkeypatch):
    from psaq_kernels.density_tunables import SMOOTH

    monkeypatch.setattr(tuner, "gpu_clock", lambda launch: launch())
    monkeypatch.setattr("psaq.tune.device_limits", lambda device: LIMITS)
    monkeypatch.setattr(tuner, "device_limits", lambda device: LIMITS)
    times = iter([8.0, 4.0, 2.0, 16.0])
    monkeypatch.setattr(type(SMOOTH), "prepare", lambda *_: lambda config: next(times))
    problem = SMOOTH.problems(workload("deit_tiny", 8))[0]
    rates = MachineRates(1e12, {"float32": 1e13})
    row = tune_problem(SMOOTH, problem, torch.device("cpu"), rates, tmp_path / "gpu.json")
    (entry,) = tuning.read_table(tmp_path / "gpu.json")
    assert entry.config == SMOOTH.candidates(problem, LIMITS)[2]
    assert row[0] == "similarity_density.smooth"
    assert row[2:5] == ("8.0", "2.0", "4.00×")


def test_columns_line_up():
    assert table(("a", "b"), [("long", "1"), ("x", "2")]) == "a     b\nlong  1\nx     2"


def test_command_compiles_for_a_gpu_that_is_not_here():
    command = [sys.executable, "-m", "psaq", "tune", "--target", "sm_90"]
    options = ["--model", "micro_vit", "--kernel", "similarity_density.smooth"]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, cwd=root, env={"PATH": "", "HOME": str(Path.home())}
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("similarity_density.smooth")]
    assert len(rows) == 4
    assert {row[-2] for row in rows} == {"0"}

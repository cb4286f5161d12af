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


@pytest.fixture
def interpreted(tmp_path, monkeypatch):
    """Triton's interpreter in the place of a GPU, timed by a clock that only launches; tables go into ``tmp_path``."""
    if torch.cuda.is_available():
        pytest.skip("the interpreter is off where there is a GPU")
    monkeypatch.setenv("PSAQ_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tuning, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr("psaq.tune._gpu", lambda: torch.device("cpu"))
    monkeypatch.setattr(tuner, "gpu_clock", lambda launch: launch() or 3.0)
    monkeypatch.setattr(tuner, "measure_rates", lambda *_: MachineRates(1e12, {"float32": 1e13, "int8": 1e14}))
    for number in ("EXAMPLE_BANDWIDTH", "EXAMPLE_POINTS"):
        monkeypatch.setattr(f"psaq_kernels.density_tunables.{number}", 16)
    yield tmp_path
    tuning.forget_tables()


@pytest.mark.parametrize(("export", "folder"), [(False, "tuned"), (True, "shipped")])
def test_the_whole_command(interpreted, capsys, export, folder):
    Tune(model=("micro_vit",), batch=1, kernel=("similarity_density.smooth",), export=export).run()
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()] == ["kernel", "similarity_density.smooth", "written"]
    (entry,) = tuning.read_table(interpreted / folder / "interpreter.json")
    assert (entry.operation, entry.best_us) == ("similarity_density.smooth", 3.0)


def test_a_table_that_cannot_be_written_is_said_before_the_work(interpreted, monkeypatch):
    (interpreted / "tuned").write_text("a file where the folder should be")
    monkeypatch.setattr(tuner, "measure_rates", lambda *_: pytest.fail("worked first"))
    with pytest.raises(PsaqError, match="PSAQ_CACHE_DIR"):
        Tune(model=("micro_vit",), batch=1, kernel=("similarity_density.smooth",)).run()


def test_a_kernel_that_does_not_run_here_is_an_error_with_its_name(interpreted, monkeypatch):
    def refuse(launch):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(tuner, "gpu_clock", refuse)
    with pytest.raises(PsaqError, match=r"similarity_density\.smooth.*no kernel image"):
        Tune(model=("micro_vit",), batch=1, kernel=("similarity_density.smooth",)).run()


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

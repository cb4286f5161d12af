import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from psaq.commands.work.tune import distinct_problems, table, workload
from psaq.errors import PsaqError
from psaq.tune import Tune
from psaq_kernels import tuner, tuning
from psaq_kernels.devices import INTERPRETER
from psaq_kernels.tunable import MachineRates
from psaq_kernels.workers import CallError

pytest.importorskip("triton")


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
    monkeypatch.setattr("psaq.commands.work.tune.interpreting", lambda device: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(PsaqError, match="--target"):
        Tune(model=("micro_vit",)).run()


@pytest.mark.parametrize("options", [{"batch": 0}, {"target": "sm_1"}])
def test_bad_options_are_refused(options):
    with pytest.raises(PsaqError, match=next(iter(options))):
        Tune(**options).run()


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


class InThisProcess:
    """A caller without a process of its own, which counts what it is asked."""

    def __init__(self):
        self.asked = 0

    def call(self, function, *arguments, seconds):
        self.asked += 1
        try:
            return function(*arguments)
        except Exception as error:
            raise CallError(str(error)) from error

    def end(self):
        pass


@pytest.fixture
def caller(monkeypatch):
    made = InThisProcess()
    monkeypatch.setattr("psaq.commands.work.tune._caller", lambda: made)
    return made


@pytest.fixture
def interpreted(tmp_path, monkeypatch, caller):
    """Triton's interpreter in the place of a GPU, timed by a clock that only launches; tables go into ``tmp_path``."""
    if torch.cuda.is_available():
        pytest.skip("the interpreter is off where there is a GPU")
    monkeypatch.setenv("PSAQ_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tuning, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr("psaq.commands.work.tune._gpu", lambda: torch.device("cpu"))
    monkeypatch.setattr(tuner, "gpu_clock", lambda launch, milliseconds: launch() or 3.0)
    monkeypatch.setattr(tuner, "measure_rates", lambda *_: MachineRates(1e12, {"float32": 1e13, "int8": 1e14}))
    for number in ("EXAMPLE_BANDWIDTH", "EXAMPLE_POINTS"):
        monkeypatch.setattr(f"psaq_kernels.density_tunables.{number}", 16)
    yield tmp_path
    tuning.forget_tables()


def tune(*kernels, **options):
    Tune(model=("micro_vit",), batch=1, kernel=kernels or ("similarity_density.smooth",), **options).run()


@pytest.mark.parametrize(("export", "folder"), [(False, "tuned"), (True, "shipped")])
def test_the_whole_command(interpreted, capsys, export, folder):
    tune(export=export)
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()] == ["1", "kernel", "similarity_density.smooth", "written"]
    assert "the table holds 0; for the others 4 configurations, of which 4 may win" in said
    (entry,) = tuning.read_table(interpreted / folder / "interpreter.json")
    assert (entry.operation, entry.best_us) == ("similarity_density.smooth", 3.0)


def test_a_better_configuration_is_written_and_what_is_refused_is_counted(interpreted, monkeypatch, capsys):
    from psaq_kernels.density_tunables import SMOOTH

    problem = SMOOTH.problems(workload("micro_vit", 1))[0]
    default, refused, best, _ = SMOOTH.candidates(problem, INTERPRETER)
    times = {str(default): 8.0, str(best): 2.0}

    def launched(config):
        if config == refused:
            raise RuntimeError("out of resource: shared memory")
        return times.get(str(config), 16.0)

    monkeypatch.setattr(type(SMOOTH), "prepare", lambda *_: launched)
    monkeypatch.setattr(tuner, "gpu_clock", lambda launch, milliseconds: launch())
    tuner._prepared.cache_clear()
    tune()
    tuner._prepared.cache_clear()
    (entry,) = tuning.read_table(interpreted / "tuned" / "interpreter.json")
    assert (entry.config, entry.default_us, entry.best_us) == (best, 8.0, 2.0)
    said = capsys.readouterr().out
    (row,) = (line for line in said.splitlines() if line.startswith("similarity_density.smooth"))
    assert "4.00×" in row
    assert row.endswith("(1 refused)")
    assert f"{refused}: out of resource: shared memory" in said


def test_a_stopped_command_goes_on_with_what_the_table_lacks(interpreted, monkeypatch, caller, capsys):
    both = ("similarity_density.smooth", "similarity_density.table")
    whole = tuning.merge_into_table

    def stop_at_the_second(path, entries):
        if [entry.operation for entry in entries] == ["similarity_density.table"]:
            raise KeyboardInterrupt
        whole(path, entries)

    monkeypatch.setattr(tuning, "merge_into_table", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        tune(*both)
    monkeypatch.setattr(tuning, "merge_into_table", whole)
    first = caller.asked
    tune(*both)
    assert first < caller.asked < 2 * first  # the second alone
    assert "2 shapes, of which the table holds 1" in capsys.readouterr().out
    entries = tuning.read_table(interpreted / "tuned" / "interpreter.json")
    assert {entry.operation for entry in entries} == set(both)
    before = caller.asked
    tune(*both)
    assert caller.asked == before
    tune(*both, again=True)
    assert caller.asked > before


def test_a_table_that_cannot_be_written_is_said_before_the_work(interpreted, monkeypatch):
    (interpreted / "tuned").write_text("a file where the folder should be")
    monkeypatch.setattr(tuner, "measure_rates", lambda *_: pytest.fail("worked first"))
    with pytest.raises(PsaqError, match="PSAQ_CACHE_DIR"):
        tune()


def test_a_kernel_that_does_not_run_here_is_named_and_the_others_are_tuned(interpreted, monkeypatch, capsys):
    from psaq_kernels.density_tunables import SMOOTH

    def refuse(config):
        raise RuntimeError("no kernel image")

    prepare = type(SMOOTH).prepare
    monkeypatch.setattr(
        type(SMOOTH),
        "prepare",
        lambda kernel, *rest: refuse if kernel is SMOOTH else prepare(kernel, *rest),
    )
    monkeypatch.setattr(tuner, "gpu_clock", lambda launch, milliseconds: launch() or 3.0)
    tuner._prepared.cache_clear()
    with pytest.raises(PsaqError, match=r"similarity_density\.smooth.*no kernel image"):
        tune("similarity_density.smooth", "similarity_density.table")
    tuner._prepared.cache_clear()
    (entry,) = tuning.read_table(interpreted / "tuned" / "interpreter.json")
    assert entry.operation == "similarity_density.table"
    assert "the default does not run" in capsys.readouterr().out


def test_columns_line_up():
    assert table(("a", "b"), [("long", "1"), ("x", "2")]) == "a     b\nlong  1\nx     2"


def test_a_compiler_that_breaks_down_is_a_row_and_an_error(monkeypatch, capsys):
    monkeypatch.setattr(
        "psaq.commands.work.tune.check_candidate", math.sqrt
    )  # which in a process of its own raises TypeError
    with pytest.raises(PsaqError, match="4 configurations do not fit"):
        tune(target="sm_90")
    assert capsys.readouterr().out.count("does not compile: TypeError") == 4


def test_command_compiles_for_a_gpu_that_is_not_here():
    command = [sys.executable, "-m", "psaq", "tune", "--target", "sm_90"]
    options = ["--model", "micro_vit", "--kernel", "similarity_density.smooth"]
    root = Path(__file__).parents[2]
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {"PATH": "", "HOME": str(Path.home()), "PYTHONPATH": paths}
    done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=root, env=environment)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("similarity_density.smooth")]
    assert len(rows) == 4
    assert {row[-2] for row in rows} == {"0"}

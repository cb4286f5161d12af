import importlib
import importlib.util
import itertools
import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from psaq_kernels import devices, tuner, tuning
from psaq_kernels.devices import DeviceLimits
from psaq_kernels.tunable import CompileRequest, Config, MachineRates, Tunable, Workload, tunables
from psaq_kernels.workers import CallError

HERE = DeviceLimits("NVIDIA Test 90", "sm_90", 232448)
CPU = torch.device("cpu")


class Doubling(Tunable):
    """A kernel whose configurations differ in one number; the problem's size is its bucket."""

    name = "doubling"
    source_hash = "0123456789abcdef"

    def problems(self, workload):
        return [{"size": 8}]

    def bucket(self, problem):
        return f"size{problem['size']}"

    def default(self, problem, limits):
        return Config({"BLOCK": 16}, 4, 1)

    def candidates(self, problem, limits):
        return [Config({"BLOCK": block}, 4, 1) for block in (8, 16, 32, 64)]

    def reckon(self, config, problem, limits):
        return 1.0

    def compile_request(self, problem, config):
        return CompileRequest(None, {}, config.constants, 4, 1)

    def prepare(self, problem, device):
        return lambda config: config.constants["BLOCK"]

    def bound(self, problem, rates):
        return 1e-6


KERNEL = Doubling()
PROBLEM = {"size": 8}
TUNED = Config({"BLOCK": 64}, 8, 2)


@pytest.fixture(autouse=True)
def empty_tables(tmp_path, monkeypatch):
    """A cache folder of this test's own, an empty shipped folder, and a GPU by name."""
    monkeypatch.setenv("PSAQ_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tuning, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(tuning, "device_limits", lambda device: HERE)
    tuning.forget_tables()
    yield
    tuning.forget_tables()


def entry(**changes):
    known = tuning.Entry(
        operation="doubling",
        bucket="size8",
        source=KERNEL.source_hash,
        triton=tuning.triton_version(),
        device=HERE.name,
        capability=HERE.capability,
        config=TUNED,
        default_us=10.0,
        best_us=5.0,
    )
    return replace(known, **changes)


def look_up():
    return tuning.configuration(KERNEL, PROBLEM, CPU)


def table(folder=None):
    return tuning.table_path(folder or tuning.cache_folder(), HERE.name)


def test_default_without_a_table():
    assert look_up() == KERNEL.default(PROBLEM, HERE)


def test_written_entry_is_found():
    tuning.merge_into_table(table(), [entry()])
    assert tuning.read_table(table()) == [entry()]
    assert look_up() == TUNED


def test_shipped_entry_is_found():
    tuning.merge_into_table(table(tuning.SHIPPED), [entry()])
    assert look_up() == TUNED


@pytest.mark.parametrize("other", [{"device": "NVIDIA Other 90"}, {"triton": "3.0.0"}])
def test_same_capability_serves_where_the_device_itself_is_missing(other):
    near = entry(config=Config({"BLOCK": 32}, 2, 1), **other)
    tuning.merge_into_table(table(), [near])
    assert look_up() == near.config
    tuning.merge_into_table(table(), [entry()])
    assert look_up() == TUNED


@pytest.mark.parametrize(
    "other",
    [
        {"capability": "sm_80"},
        {"source": "another"},
        {"operation": "halving"},
        {"bucket": "size16"},
        {"config": Config({"TILE": 64}, 8, 2)},
    ],
)
def test_what_does_not_apply_is_not_used(other):
    tuning.merge_into_table(table(), [entry(**other)])
    assert look_up() == KERNEL.default(PROBLEM, HERE)


def test_a_benchmark_can_launch_with_the_defaults_whatever_the_tables_hold(monkeypatch):
    for folder in (tuning.cache_folder(), tuning.SHIPPED):
        tuning.merge_into_table(table(folder), [entry()])
    assert look_up() == TUNED
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "kernels" / "benchmarks")
    importlib.import_module("settings").launch_with_defaults()
    assert look_up() == KERNEL.default(PROBLEM, HERE)


def test_newer_entry_replaces_older():
    tuning.merge_into_table(table(), [entry(config=Config({"BLOCK": 8}, 1, 1))])
    tuning.merge_into_table(table(), [entry()])
    assert tuning.read_table(table()) == [entry()]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"format": 1}',
        '{"format": 99, "entries": []}',
        '{"format": 1, "entries": [{"operation": "doubling"}]}',
        '{"format": 1, "entries": [3]}',
    ],
)
def test_damaged_or_foreign_table_is_ignored_with_a_warning(content):
    table().parent.mkdir(parents=True)
    table().write_text(content)
    with pytest.warns(UserWarning, match="not a tuning table"):
        assert look_up() == KERNEL.default(PROBLEM, HERE)


def test_every_truncation_is_ignored():
    tuning.merge_into_table(table(), [entry()])
    whole = table().read_text()
    for length in range(0, len(whole) - 2, 7):
        table().write_text(whole[:length])
        with pytest.warns(UserWarning, match="not a tuning table"):
            assert tuning.read_table(table()) == []


def change_table(*path, value, digest=True):
    """Another value in the table's first entry, with a digest that fits it or none."""
    tuning.merge_into_table(table(), [entry()])
    content = json.loads(table().read_text())
    *parents, last = path
    place = content["entries"][0]
    for name in parents:
        place = place[name]
    place.pop(last, None)
    if value is not ...:
        place[last] = value
    if digest:
        content["sha256"] = tuning._digest(content["entries"])
    else:
        del content["sha256"]
    table().write_text(json.dumps(content))


@pytest.mark.parametrize("digest", [True, False])
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("config", "constants", "BLOCK"), [64]),
        (("config", "constants", "BLOCK"), -64),
        (("config", "constants", "BLOCK"), True),
        (("config", "num_warps"), 3),
        (("config", "num_warps"), 4.0),
        (("config", "num_warps"), 4096),
        (("config", "num_stages"), -1),
        (("config", "num_stages"), "2"),
        (("config", "speed"), 1),
        (("config", "num_stages"), ...),
        (("best_us",), float("nan")),
        (("default_us",), float("inf")),
        (("default_us",), 0),
        (("bucket",), 8),
        (("device",), ...),
        (("note",), "fast"),
    ],
)
def test_what_no_kernel_can_be_launched_with_is_refused(path, value, digest):
    change_table(*path, value=value, digest=digest)
    with pytest.warns(UserWarning, match="not a tuning table"):
        assert tuning.read_table(table()) == []


def test_a_table_that_was_changed_is_refused():
    tuning.merge_into_table(table(), [entry()])
    table().write_text(table().read_text().replace('"num_warps": 8', '"num_warps": 4'))
    with pytest.warns(UserWarning, match="not as it was written"):
        assert tuning.read_table(table()) == []


def test_a_table_from_before_digests_is_read():
    change_table("config", "num_warps", value=4, digest=False)
    assert look_up() == Config({"BLOCK": 64}, 4, 2)


def test_a_configuration_beyond_the_device_is_not_launched():
    tuning.merge_into_table(table(), [entry(config=Config({"BLOCK": 64}, HERE.max_warps, 2))])
    assert look_up().num_warps == HERE.max_warps
    small = DeviceLimits(HERE.name, HERE.capability, HERE.shared_bytes, max_threads=512)
    with pytest.warns(UserWarning, match="more than the device's 16 warps"):
        assert tuning._configuration(KERNEL, tuple(PROBLEM.items()), small) == KERNEL.default(PROBLEM, small)


def test_a_constant_of_another_kind_is_not_used():
    tuning.merge_into_table(table(), [entry(config=Config({"BLOCK": "large"}, 4, 2))])
    assert look_up() == KERNEL.default(PROBLEM, HERE)


def _write_buckets(path, buckets):
    for bucket in buckets:
        tuning.merge_into_table(path, [entry(bucket=bucket)])


def test_two_processes_lose_nothing():
    spawn = multiprocessing.get_context("fork")
    names = [[f"{process}-{i}" for i in range(15)] for process in range(3)]
    processes = [spawn.Process(target=_write_buckets, args=(table(), mine)) for mine in names]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert {found.bucket for found in tuning.read_table(table())} == set(itertools.chain(*names))


def test_table_name_is_a_plain_file_name(tmp_path):
    assert tuning.table_path(tmp_path, "AMD Instinct MI300X/../x").name == "amd-instinct-mi300x-x.json"


# Timing --------------------------------------------------------------------------------------------------------------


class Timed:
    """Answers timings from a function of the configuration's block and of the time it is given."""

    def __init__(self, microseconds):
        self.microseconds = microseconds
        self.asked, self.ended = [], 0

    def call(self, function, kernel, problem, config, milliseconds, *, seconds):
        assert function is tuner.time_configuration
        self.asked.append((config.constants["BLOCK"], milliseconds))
        return self.microseconds(config.constants["BLOCK"], milliseconds)

    def end(self):
        self.ended += 1


JOB = tuner.Job(KERNEL, PROBLEM, HERE)
ACCEPTED = [""] * 4


def test_the_fastest_candidate_wins_and_refused_ones_are_passed_over():
    def microseconds(block, milliseconds):
        if block == 64:
            raise CallError("out of resource: shared memory")
        return abs(block - 30.0)

    caller = Timed(microseconds)
    timings = list(tuner.time_job(JOB, caller, ACCEPTED))
    assert [timing.config.constants["BLOCK"] for timing in timings] == [16, 8, 32, 64, 16, 32]
    assert (timings[3].microseconds, timings[3].refusal) == (None, "out of resource: shared memory")
    assert caller.ended == 1  # whatever the refused one left behind is gone
    best = JOB.entry(timings)
    assert (best.config.constants["BLOCK"], best.default_us, best.best_us) == (32, 14.0, 2.0)
    assert (best.bucket, best.device, best.capability) == ("size8", HERE.name, "sm_90")


def test_what_does_not_compile_is_not_launched():
    caller = Timed(lambda block, milliseconds: float(block))
    timings = list(tuner.time_job(JOB, caller, ["", "", "does not compile", ""]))
    assert timings[2].refusal == "does not compile"
    assert 32 not in {block for block, _ in caller.asked}


def test_the_fine_round_has_the_last_word():
    """32 looks best at first; 64, almost as good, is better when looked at longer; 8 is too far behind."""
    times = {(16, 20): 30.0, (8, 20): 13.0, (32, 20): 10.0, (64, 20): 11.0}
    times |= {(16, 80): 31.0, (32, 80): 12.0, (64, 80): 9.0}
    caller = Timed(lambda *asked: times[asked])
    best = JOB.entry(list(tuner.time_job(JOB, caller, ACCEPTED)))
    assert (best.config.constants["BLOCK"], best.default_us, best.best_us) == (64, 31.0, 9.0)


@pytest.mark.parametrize("reasons", [ACCEPTED, ["too many registers", "", "", ""]])
def test_a_refused_default_is_an_error(reasons):
    def microseconds(*_):
        raise CallError("no kernel image")

    with pytest.raises(tuner.TuningError, match=rf"doubling.*{reasons[0] or 'no kernel image'}"):
        list(tuner.time_job(JOB, Timed(microseconds), reasons))


def test_what_the_model_gives_no_chance_is_left_out_but_for_the_default(monkeypatch):
    monkeypatch.setattr(Doubling, "reckon", lambda self, config, problem, limits: float(config.constants["BLOCK"]))
    assert [config.constants["BLOCK"] for config in JOB.configs] == [16, 8]
    monkeypatch.setattr(Doubling, "reckon", lambda self, config, problem, limits: 100.0 + config.constants["BLOCK"])
    assert [config.constants["BLOCK"] for config in JOB.configs] == [16, 8, 32]


def test_rates_come_from_the_clock():
    def clock(launch, milliseconds):
        launch()
        return 2.0

    rates = tuner.measure_rates(CPU, clock)
    assert rates.bytes_per_second == pytest.approx(2 * 2**10 / 2e-6)
    assert rates.flops_per_second["float32"] == pytest.approx(2 * 64**3 / 2e-6)
    assert isinstance(rates, MachineRates)


# The density's kernels ------------------------------------------------------------------------------------------------


def test_density_configurations_fit_every_target():
    pytest.importorskip("triton")
    from psaq_kernels.density_tunables import TUNABLES

    workload = Workload("", features=((32, 1, 196, 64), (32, 64, 49, 33)))
    for kernel, limits in itertools.product(TUNABLES, devices.TARGETS.values()):
        for problem in kernel.problems(workload):
            candidates = kernel.candidates(problem, limits)
            assert kernel.default(problem, limits) == candidates[0]
            assert len(candidates) == len({str(config) for config in candidates})
            assert all(config.num_warps <= limits.max_warps for config in candidates)
            assert kernel.bound(problem, MachineRates(1e12, {"float32": 1e13})) > 0


def test_buckets_tell_workloads_apart_but_not_twins():
    from psaq_kernels.density_configs import bucket, density_problem
    from psaq_kernels.density_layout import LayerShape

    def name(images, windows, patches, channels, dtype="float32"):
        return bucket(density_problem([LayerShape(images, windows, patches, channels)] * 12, dtype))

    assert name(32, 1, 196, 64) == name(30, 1, 190, 60)
    others = {name(32, 1, 196, 64), name(1, 1, 196, 64), name(32, 1, 49, 64), name(32, 1, 196, 64, "bfloat16")}
    assert len(others) == 4


# All kernels ----------------------------------------------------------------------------------------------------------


def registered_kernels():
    return tunables() if importlib.util.find_spec("triton") else []


class InThisProcess:
    """A caller without a process of its own."""

    def call(self, function, *arguments, seconds):
        return function(*arguments)

    def end(self):
        pytest.fail("no timing was refused")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is off where there is a GPU")
@pytest.mark.parametrize("kernel", registered_kernels(), ids=lambda kernel: kernel.name)
def test_every_kernel_can_be_tuned(kernel, monkeypatch):
    """From a model's shapes to a table's entry that the next launch finds, with the interpreter for a GPU."""
    for number in ("density_tunables.EXAMPLE_BANDWIDTH", "density_tunables.EXAMPLE_POINTS"):
        monkeypatch.setattr(f"psaq_kernels.{number}", 16)
    tiny = Workload("tiny", features=((1, 1, 4, 16),), linears=((3, 32, 32),))
    calls = []

    def clock(launch, milliseconds):
        launch()
        calls.append(launch)
        return 100.0 - len(calls)

    monkeypatch.setattr(tuner, "gpu_clock", clock)
    rates = tuner.measure_rates(CPU, lambda launch, milliseconds: 1.0)
    problems = kernel.problems(tiny)
    assert problems
    for problem in problems[:2]:
        job = tuner.Job(kernel, problem, HERE)
        timings = list(tuner.time_job(job, InThisProcess(), [""] * len(job.configs)))
        best = job.entry(timings)
        assert best.config == timings[-1].config
        assert kernel.bound(problem, rates) > 0
        tuning.merge_into_table(table(), [best])
        assert tuning.configuration(kernel, problem, CPU) == best.config

import importlib.util
import itertools
import json
import multiprocessing
from dataclasses import replace

import pytest
import torch

from psaq_kernels import devices, tuner, tuning
from psaq_kernels.devices import DeviceLimits
from psaq_kernels.tunable import CompileRequest, Config, MachineRates, Tunable, Workload, tunables

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
    monkeypatch.setattr(tuner, "device_limits", lambda device: HERE)
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


def test_a_constant_that_is_no_number_or_name_is_refused():
    tuning.merge_into_table(table(), [entry()])
    content = json.loads(table().read_text())
    content["entries"][0]["config"]["constants"]["BLOCK"] = [64]
    table().write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="not a tuning table"):
        assert tuning.read_table(table()) == []


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


def test_the_fastest_candidate_wins_and_refused_ones_are_passed_over():
    def clock(launch):
        block = launch()
        if block == 64:
            raise RuntimeError("out of resource: shared memory")
        return abs(block - 30.0)

    timings = list(tuner.time_candidates(KERNEL, PROBLEM, CPU, clock))
    assert [timing.config.constants["BLOCK"] for timing in timings] == [16, 8, 32, 64]
    assert timings[-1].microseconds is None
    best = tuner.best_entry(KERNEL, PROBLEM, timings, HERE)
    assert (best.config.constants["BLOCK"], best.default_us, best.best_us) == (32, 14.0, 2.0)
    assert (best.bucket, best.device, best.capability) == ("size8", HERE.name, "sm_90")


def test_a_refused_default_is_an_error():
    def clock(launch):
        raise RuntimeError("no kernel image")

    with pytest.raises(tuner.TuningError, match=r"doubling.*no kernel image"):
        list(tuner.time_candidates(KERNEL, PROBLEM, CPU, clock))


def test_rates_come_from_the_clock(monkeypatch):
    monkeypatch.setattr(tuner, "MATMUL_SIZE", 64)
    monkeypatch.setattr(tuner, "COPY_BYTES", 1 << 10)

    def clock(launch):
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is off where there is a GPU")
@pytest.mark.parametrize("kernel", registered_kernels(), ids=lambda kernel: kernel.name)
def test_every_kernel_can_be_tuned(kernel, monkeypatch):
    """From a model's shapes to a table's entry that the next launch finds, with the interpreter for a GPU."""
    for number in ("density_tunables.EXAMPLE_BANDWIDTH", "density_tunables.EXAMPLE_POINTS", "tuner.MATMUL_SIZE"):
        monkeypatch.setattr(f"psaq_kernels.{number}", 16)
    tiny = Workload("tiny", features=((1, 1, 4, 16),), linears=((3, 32, 32),))
    calls = []

    def clock(launch):
        launch()
        calls.append(launch)
        return 100.0 - len(calls)

    rates = tuner.measure_rates(CPU, lambda launch: 1.0)
    problems = kernel.problems(tiny)
    assert problems
    for problem in problems[:2]:
        timings = list(tuner.time_candidates(kernel, problem, CPU, clock))
        best = tuner.best_entry(kernel, problem, timings, HERE)
        assert best.config == timings[-1].config
        assert kernel.bound(problem, rates) > 0
        tuning.merge_into_table(table(), [best])
        assert tuning.configuration(kernel, problem, CPU) == best.config

"""Compiling for GPUs that are not here, under the installed Triton and under the oldest one supported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from repeats import also

from psaq_kernels.devices import TARGETS

pytest.importorskip("triton")
from psaq_kernels.aot import Resources

ROOT = Path(__file__).parents[2]
OLDEST_TRITON = ROOT / ".triton36"

CHECK = """
import json, multiprocessing, sys
from psaq_kernels.aot import check_request, distinct_candidates, target_limits
from psaq_kernels.tunable import Workload, tunables
from psaq_kernels.tuning import triton_version

target, which = sys.argv[1:]
limits = target_limits(target)
workloads = [
    Workload("ViT and Swin", ((32, 1, 196, 64), (32, 64, 49, 33)), ((6304, 768, 3072), (32, 1000, 768))),
    *(Workload(f"{channels} channels", features=((8, 1, 4096, channels),)) for channels in (8, 1024, 1536)),
]

def defaults():
    for kernel in tunables():
        for problem in kernel.problems(workloads[0]):
            yield kernel, problem, kernel.default(problem, limits)

candidates = list(defaults()) if which == "defaults" else distinct_candidates(tunables(), workloads, target)
if which == "split":
    candidates = [found for found in candidates if found[2].constants.get("SPLIT_K", 1) > 1]
if which == "unpacking":  # beside values that are quantised on the way
    unpacked = [found for found in candidates if found[1].get("packed") and found[1]["x"] == "bf16"]
    smallest = {"BLOCK_M": 32, "QUANTIZE_FIRST": 0}
    candidates = [found for found in unpacked if smallest.items() <= found[2].constants.items()]

def check(index):
    kernel, problem, config = candidates[index]
    finding = check_request(kernel.name, config, kernel.compile_request(problem, config), target)
    return [kernel.name, str(config), str(finding.resources), finding.error, finding.is_good]

with multiprocessing.get_context("fork").Pool() as pool:  # a core to a compilation
    found = pool.map(check, range(len(candidates)), chunksize=1)
print(json.dumps({"triton": triton_version(), "found": found}))
"""

# What is launched with one configuration only: levels by rows, LayerNorm to levels, the sum of split products.
UNTUNED = """
import json, sys
from psaq_kernels import layer_norm_triton, levels_triton, linear_triton
from psaq_kernels.aot import check_request
from psaq_kernels.tunable import CompileRequest, Config
from psaq_kernels.tuning import triton_version

levels = {"LOWEST": -127, "HIGHEST": 127, "column_stride": 1}
common = {"x_ptr": "*bf16", "levels_ptr": "*i8", "row_stride": "i32", "inverse_scale": "fp32", "zero": "i32"}
rows = {**common, "K": "i32", "row_scale_ptr": "*fp32"}
norm = {**common, "weight_ptr": "*fp32", "bias_ptr": "*fp32", "channels": "i32", "eps": "fp32"}
split = {
    "partial_ptr": "*i32", "row_scale_ptr": "*fp32", "weight_scale_ptr": "*fp32", "column_sums_ptr": "*i32",
    "bias_ptr": "*fp32", "out_ptr": "*bf16", "M": "i32", "N": "i32", "input_scale": "fp32", "input_zero": "i32",
    "inverse_output_scale": "fp32", "output_zero": "i32",
}
tile = {"OUT_LOWEST": -128, "OUT_HIGHEST": 127, "PER_TOKEN": True, "GELU": True, "BLOCK_M": 8, "BLOCK_N": 128}
requests = [
    CompileRequest(levels_triton._quantize_rows_kernel, rows, {**levels, "BLOCK_K": 4096}, 8, 3, fp_fusion=False),
    CompileRequest(layer_norm_triton._layer_norm_quantize_kernel, norm, {**levels, "BLOCK": 1024}, 4, 3),
    CompileRequest(linear_triton._finish_split_kernel, split, {**tile, "SPLIT_K": 4}, 4, 3, fp_fusion=False),
]
found = [check_request("", Config({}, 4, 3), request, sys.argv[1]) for request in requests]
rows = [[str(finding.resources), finding.error, finding.is_good] for finding in found]
print(json.dumps({"triton": triton_version(), "found": rows}))
"""


@pytest.fixture(params=["installed", "oldest"])
def environment(request):
    """A process environment with one of the two Tritons and without the interpreter."""
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if request.param == "installed":
        return clean
    if not (OLDEST_TRITON / "triton").exists():
        pytest.skip(f"{OLDEST_TRITON} is absent: `make unit` installs Triton 3.6 there")
    return clean | {"PYTHONPATH": str(OLDEST_TRITON)}


def run_python(environment, *arguments):
    return subprocess.run([sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True)


def check(environment, script, *arguments):
    done = run_python(environment, "-c", script, *arguments)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    is_oldest = str(OLDEST_TRITON) in environment.get("PYTHONPATH", "")
    assert result["triton"].startswith("3.6.") == is_oldest
    assert [row for row in result["found"] if not row[-1]] == []
    return result["found"]


def test_every_configuration_fits_hopper(environment):
    found = check(environment, CHECK, "sm_90", "all")
    assert len({name for name, *_ in found}) == 6
    assert len(found) > 60


@pytest.mark.parametrize("target", ["sm_80", "gfx942", *also(*sorted({*TARGETS} - {"sm_80", "sm_90", "gfx942"}))])
def test_defaults_fit_every_target(environment, target):
    assert len({name for name, *_ in check(environment, CHECK, target, "defaults")}) == 6


@pytest.mark.parametrize("target", ["sm_120", *also("sm_100")])
def test_split_sums_do_not_spill(environment, target):
    """Beside them, a compiler or another once ran out of registers by one value."""
    assert {name for name, *_ in check(environment, CHECK, target, "split")} == {"quant_linear"}


def test_rows_are_unpacked_beside_values_that_are_quantised(environment):
    """What Triton 3.6 broke down on for AMD's GPUs, in a pipeline of four stages."""
    assert {name for name, *_ in check(environment, CHECK, "gfx942", "unpacking")} == {"quant_linear"}


@pytest.mark.parametrize("target", ["sm_90", *also("sm_80", "gfx942")])
def test_what_is_not_tuned_fits(environment, target):
    assert len(check(environment, UNTUNED, target)) == 3


SPILLING = """
import json, sys
import triton, triton.language as tl
from psaq_kernels.aot import check_request
from psaq_kernels.tunable import CompileRequest, Config

sys.path.insert(0, sys.argv[1])
from spilling_kernel import hoard

rows = []
for size, warps in ((64, 4), (16384, 1)):
    request = CompileRequest(hoard, {"x_ptr": "*fp32"}, {"SIZE": size}, warps, 1, ("x_ptr",))
    finding = check_request("hoard", Config({"SIZE": size}, warps, 1), request, "sm_90")
    rows.append([finding.resources.spilled_bytes, finding.is_good])
broken = CompileRequest(hoard, {"x_ptr": "*fp32"}, {"SIZE": 65}, 1, 1)
rows.append([check_request("hoard", Config({}, 1, 1), broken, "sm_90").error])
print(json.dumps(rows))
"""

HOARD = """
import triton
import triton.language as tl


@triton.jit
def hoard(x_ptr, SIZE: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, SIZE))
    total = tl.sum(x, axis=0)
    tl.store(x_ptr + tl.arange(0, SIZE), tl.exp(x) / total)
"""


def test_a_spill_and_a_broken_kernel_are_found(environment, tmp_path):
    (tmp_path / "spilling_kernel.py").write_text(HOARD)
    done = run_python(environment, "-c", SPILLING, str(tmp_path))
    assert done.returncode == 0, done.stderr
    (spilled, good), (more_spilled, more_good), (refused,) = json.loads(done.stdout)
    assert (spilled, good) == (0, True)
    assert more_spilled > 0
    assert not more_good
    assert "power of 2" in refused


@pytest.mark.parametrize(
    ("used", "target", "fits"),
    [
        (Resources(255, 0, 1024), "sm_90", True),
        (Resources(96, 16, 1024), "sm_100", True),  # for more blocks at a time: there were registers left
        (Resources(255, 8, 1024), "sm_100", False),
        (Resources(128, 20, 1024), "sm_100", False),
        (Resources(96, 16, 1024), "gfx942", False),
        (Resources(96, 0, 100 * 1024), "sm_120", False),
    ],
)
def test_a_kernel_fits_unless_it_lacks_registers_or_shared_memory(used, target, fits):
    assert used.fits(TARGETS[target]) is fits


def test_unknown_target_is_refused_by_name():
    from psaq_kernels.aot import target_limits

    with pytest.raises(ValueError, match="sm_91"):
        target_limits("sm_91")


def test_the_interpreters_kernels_cannot_be_compiled():
    from psaq_kernels.aot import CompileError, compile_ahead
    from psaq_kernels.tunable import CompileRequest

    with pytest.raises(CompileError, match="TRITON_INTERPRET"):
        compile_ahead(CompileRequest(object(), {}, {}, 4, 1), "sm_90")

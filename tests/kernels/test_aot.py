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


@pytest.fixture(params=["installed", "oldest"], scope="module")
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


@pytest.fixture(scope="module")
def check(environment):
    """The findings of a choice of configurations for a target, compiled by one process: all of them good."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("compiling_process.py"))],
        env=environment,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    is_oldest = str(OLDEST_TRITON) in environment.get("PYTHONPATH", "")

    def ask(target, choice):
        process.stdin.write(json.dumps([target, choice]) + "\n")
        process.stdin.flush()
        result = json.loads(process.stdout.readline())
        assert result["triton"].startswith("3.6.") == is_oldest
        assert [row for row in result["found"] if not row[-1]] == []
        return result["found"]

    yield ask
    process.stdin.close()
    assert process.wait(60) == 0
    process.stdout.close()


@pytest.mark.parametrize("environment", ["installed", *also("oldest")], indirect=True)
def test_every_configuration_fits_hopper(check):
    found = check("sm_90", "all")
    assert len({name for name, *_ in found}) == 6
    assert len(found) > 60


@pytest.mark.parametrize(
    "target", ["sm_80", "sm_90", "gfx942", *also(*sorted({*TARGETS} - {"sm_80", "sm_90", "gfx942"}))]
)
def test_defaults_fit_every_target(check, target):
    assert len({name for name, *_ in check(target, "defaults")}) == 6


@pytest.mark.parametrize("target", ["sm_120", *also("sm_100")])
def test_split_sums_do_not_spill(check, target):
    """Beside them, a compiler or another once ran out of registers by one value."""
    assert {name for name, *_ in check(target, "split")} == {"quant_linear"}


def test_rows_are_unpacked_beside_values_that_are_quantised(check):
    """What Triton 3.6 broke down on for AMD's GPUs, in a pipeline of four stages."""
    assert {name for name, *_ in check("gfx942", "unpacking")} == {"quant_linear"}


@pytest.mark.parametrize("target", ["sm_90", *also("sm_80", "gfx942")])
def test_what_is_not_tuned_fits(check, target):
    assert len(check(target, "untuned")) == 3


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

"""Compiling for GPUs that are not here, under the installed Triton and under the oldest one supported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from psaq_kernels.devices import TARGETS

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
OLDEST_TRITON = ROOT / ".triton36"

CHECK = """
import json, sys
from psaq_kernels.aot import check_request, distinct_requests
from psaq_kernels.density_tunables import TUNABLES
from psaq_kernels.tunable import Workload
from psaq_kernels.tuning import triton_version

target, only_defaults = sys.argv[1], sys.argv[2] == "defaults"
workload = Workload("ViT and Swin", features=((32, 1, 196, 64), (32, 64, 49, 33)))
seen, found = set(), []
for kernel, config, request in distinct_requests(TUNABLES, [workload], target):
    if not (only_defaults and kernel.name in seen):
        finding = check_request(kernel.name, config, request, target)
        found.append([kernel.name, str(config), str(finding.resources), finding.error, finding.is_good])
    seen.add(kernel.name)
print(json.dumps({"triton": triton_version(), "found": found}))
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


def check(environment, target, which):
    done = run_python(environment, "-c", CHECK, target, which)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    is_oldest = str(OLDEST_TRITON) in environment.get("PYTHONPATH", "")
    assert result["triton"].startswith("3.6.") == is_oldest
    assert [row for row in result["found"] if not row[-1]] == []
    return result["found"]


def test_every_configuration_fits_hopper(environment):
    found = check(environment, "sm_90", "all")
    assert len({name for name, *_ in found}) == 5
    assert len(found) > 25


@pytest.mark.parametrize("target", sorted(set(TARGETS) - {"sm_90"}))
def test_defaults_fit_every_target(environment, target):
    assert len(check(environment, target, "defaults")) == 5


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
rows.append([check_request("hoard", Config({}, 1, 1), broken, "sm_90").error is not None])
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
    assert refused


def test_unknown_target_is_refused_by_name():
    from psaq_kernels.aot import target_limits

    with pytest.raises(ValueError, match="sm_91"):
        target_limits("sm_91")


def test_the_interpreters_kernels_cannot_be_compiled():
    from psaq_kernels.aot import CompileError, compile_ahead
    from psaq_kernels.tunable import CompileRequest

    with pytest.raises(CompileError, match="TRITON_INTERPRET"):
        compile_ahead(CompileRequest(object(), {}, {}, 4, 1), "sm_90")

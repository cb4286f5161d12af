"""What is compiled side by side, without a GPU, is what the launch finds in Triton's cache."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from repeats import also

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
TRITONS = {"installed": [], "oldest": [str(ROOT / ".triton36")]}

CHECK = """
import json, os
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from psaq_kernels import compiling
from psaq_kernels.devices import TARGETS
from psaq_kernels.tunable import Workload, tunable_named
from psaq_kernels.tuner import Job, refusal, start_compiling


def launch_all():
    for kernel, problem in problems:
        kernel.prepare(problem, torch.device("cpu"))(kernel.default(problem, limits))


def in_cache():
    return len(os.listdir(os.environ["TRITON_CACHE_DIR"]))


if __name__ == "__main__":
    hopper, limits = GPUTarget("cuda", 90, 32), TARGETS["sm_90"]
    shapes = Workload("", features=((1, 1, 196, 64),) * 2, linears=((197, 768, 768),))
    names = ("similarity_density.smooth", "quant_linear")  # the latter quantises, multiplies in two parts, adds up
    found = {kernel: [p for p in kernel.problems(shapes) if not p.get("group")] for kernel in map(tunable_named, names)}
    problems = [(kernel, given[-1]) for kernel, given in found.items()]
    recorded = compiling.launches_of(launch_all)
    with compiling.Compilers(hopper, processes=2) as compilers:
        used = [compilers.compile(launch).result() for launch in recorded]
        again = [compilers.compile(launch) for launch in recorded]
        compiled = in_cache()
        job = Job(*problems[0], limits)
        refused = [refusal(compilations, limits) for compilations in start_compiling(job, compilers)]
        others = in_cache() - compiled
        broken = compiling.Launch("psaq_kernels.density_kernels", "_smooth_kernel", (("BLOCK_G", 65),))
        error = str(compilers.compile(broken).exception())
    torch.cuda.is_available, compiling._target_at_hand = lambda: True, lambda: hopper
    before_use = [compiling.compile_before_use(launch_all) for _ in range(2)]
    # As a launch on real tensors would look for it, but for the launch itself.
    driver.set_active(compiling._DriverOfAbsent(hopper))
    run = JITFunction.run
    JITFunction.run = lambda *values, grid, warmup, **named: run(*values, grid=grid, warmup=True, **named)
    launch_all()
    print(json.dumps({
        "kernels": [launch.kernel for launch in recorded],
        "registers": [each.registers for each in used],
        "twice": all(each.done() for each in again),
        "found": in_cache() == compiled + others,
        "others": others,
        "compiled": compiled,
        "refused": refused,
        "before_use": before_use,
        "error": error,
    }))
"""


@pytest.mark.parametrize("triton", ["installed", *also("oldest")])
def test_a_launch_finds_what_was_compiled_before(triton: str, tmp_path: Path) -> None:
    paths = TRITONS[triton]
    if paths and not (Path(paths[0]) / "triton").exists():
        pytest.skip(f"{paths[0]} is absent: `make unit` installs Triton 3.6 there")
    script = tmp_path / "check.py"
    script.write_text(CHECK)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {
        "TRITON_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join([*paths, str(ROOT / "kernels")]),
    }
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    linear = ["_quantize_rows_kernel", "_quant_linear_kernel", "_finish_split_kernel"]
    assert seen["kernels"] == ["_center_kernel", "_smooth_kernel", *linear]
    assert all(registers > 0 for registers in seen["registers"])
    assert seen["twice"]
    assert seen["found"]
    assert seen["compiled"] == 5
    assert seen["before_use"] == [5, 0]  # the second time, there is nothing left to compile
    assert set(seen["refused"]) == {""}
    assert seen["others"] == len(seen["refused"]) - 1  # the default was there already
    assert "BLOCK_G" in seen["error"] or "argument" in seen["error"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="where there is a GPU, there is something to compile")
def test_without_a_gpu_nothing_is_compiled_or_run() -> None:
    from psaq_kernels.compiling import compile_before_use

    assert compile_before_use(lambda: pytest.fail("ran")) == 0

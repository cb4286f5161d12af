"""Configurations of the integer linear layer: always valid, within every device's limits, without spills."""

import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psaq_kernels import linear_configs
from psaq_kernels.devices import INTERPRETER, TARGETS
from psaq_kernels.linear_configs import bucket, candidates, default, example, fits, is_whole, problems, shared_bytes
from psaq_kernels.tunable import MachineRates, Workload

SIZES = st.integers(1, 4096)
PROBLEMS = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 30_000),
        "outputs": SIZES,
        "inputs": SIZES,
        "x": st.sampled_from(["fp32", "fp16", "bf16", "i8"]),
        "scale": st.sampled_from(["tensor", "token"]),
        "packed": st.sampled_from([0, 1]),
        "out": st.sampled_from(["fp32", "bf16", "i8"]),
    }
).filter(lambda problem: problem["x"] != "i8" or problem["scale"] == "tensor")


@settings(deadline=None, max_examples=150)
@given(PROBLEMS, st.sampled_from([*TARGETS.values(), INTERPRETER]))
def test_the_default_fits_every_device_and_is_a_candidate(problem, limits) -> None:
    config = default(problem, limits)
    assert fits(config, problem, limits)
    assert config in candidates(problem, limits)
    assert config.constants["SPLIT_K"] == 1 or problem["scale"] == "tensor" or config.constants["QUANTIZE_FIRST"]
    assert problem["x"] != "i8" or not config.constants["QUANTIZE_FIRST"]


@settings(deadline=None, max_examples=100)
@given(PROBLEMS, st.sampled_from(list(TARGETS.values())))
def test_no_candidate_asks_for_more_than_the_device_has(problem, limits) -> None:
    for config in candidates(problem, limits):
        assert shared_bytes(config, problem) <= limits.shared_bytes
        assert config.num_warps * limits.warp_size <= limits.max_threads


def test_small_grids_get_more_blocks_than_tiles_of_full_size_would_give() -> None:
    def blocks(rows: int) -> int:
        problem = {
            "rows": rows,
            "outputs": 768,
            "inputs": 3072,
            "x": "i8",
            "scale": "tensor",
            "packed": 0,
            "out": "bf16",
        }
        config = default(problem, TARGETS["sm_90"])
        tiles = -(-rows // config.constants["BLOCK_M"]) * -(-768 // config.constants["BLOCK_N"])
        return tiles * config.constants["SPLIT_K"]

    assert blocks(197) >= 128
    assert blocks(6304) >= 128


def test_problems_of_a_model_are_each_layer_once_per_variant() -> None:
    workload = Workload("twice", linears=((197, 768, 768), (197, 768, 768), (197, 2304, 768)))
    found = problems(workload)
    assert len(found) == 2 * len(linear_configs._MODEL_VARIANTS)
    assert len({bucket(problem) for problem in found}) == len(found)


def test_batches_between_two_powers_of_two_share_a_bucket() -> None:
    def of(rows: int) -> str:
        shape = {"rows": rows, "outputs": 768, "inputs": 768}
        return bucket({**shape, "x": "bf16", "scale": "tensor", "packed": 0, "out": "bf16"})

    assert of(1025) == of(2048) != of(2049)
    assert of(1) == of(16)


@pytest.mark.parametrize("packed", [0, 1])
def test_an_example_is_the_problem(packed: int) -> None:
    problem = {"rows": 5, "outputs": 6, "inputs": 8, "x": "bf16", "scale": "token", "packed": packed, "out": "fp32"}
    x, weight, input, out = example(problem, torch.device("cpu"))
    assert linear_configs.problem_of(x, weight, input, out.dtype) == problem
    assert out.shape == (5, 6)


@pytest.mark.parametrize(
    ("inputs", "packed", "whole"), [(256, 0, True), (255, 0, False), (256, 1, True), (255, 1, False)]
)
def test_masks_are_left_out_only_where_every_step_is_whole(inputs: int, packed: int, whole: bool) -> None:
    problem = {"rows": 64, "outputs": 64, "inputs": inputs, "x": "i8", "scale": "tensor", "packed": packed, "out": "i8"}
    assert is_whole(problem, default(problem, TARGETS["sm_90"])) is whole


def test_the_bound_is_traffic_for_thin_and_products_for_thick_matrices() -> None:
    rates = MachineRates(bytes_per_second=1e12, flops_per_second={"bf16": 1e15})
    thin = {"rows": 1, "outputs": 1024, "inputs": 1024, "x": "i8", "scale": "tensor", "packed": 0, "out": "i8"}
    assert linear_configs.bound(thin, rates) == pytest.approx((1024 + 1024**2 + 1024) / 1e12)
    thick = {**thin, "rows": 4096, "outputs": 4096, "inputs": 4096}
    assert linear_configs.bound(thick, rates) == pytest.approx(2 * 4096**3 / 2e15)


COMPILE = """
import json, sys
from psaq_kernels import layer_norm_triton, levels_triton, linear_triton
from psaq_kernels.aot import compile_ahead, target_limits
from psaq_kernels.tunable import CompileRequest, Workload

target = sys.argv[1]
limits = target_limits(target)

def report(request):
    resources = compile_ahead(request, target)
    print(json.dumps([request.kernel.__name__, str(resources), resources.fits(limits)]))

linear = linear_triton.QUANT_LINEAR
for problem in linear.problems(Workload("", linears=((6304, 768, 3072),))):
    report(linear.compile_request(problem, linear.default(problem, limits)))

levels = {"LOWEST": -127, "HIGHEST": 127, "column_stride": 1}
common = {"x_ptr": "*bf16", "levels_ptr": "*i8", "row_stride": "i32", "inverse_scale": "fp32", "zero": "i32"}
rows = {**common, "K": "i32", "row_scale_ptr": "*fp32"}
report(CompileRequest(levels_triton._quantize_rows_kernel, rows, {**levels, "BLOCK_K": 4096}, 8, 3))
norm = {**common, "weight_ptr": "*fp32", "bias_ptr": "*fp32", "channels": "i32", "eps": "fp32"}
report(CompileRequest(layer_norm_triton._layer_norm_quantize_kernel, norm, {**levels, "BLOCK": 1024}, 4, 3))
split = {
    "partial_ptr": "*i32", "row_scale_ptr": "*fp32", "weight_scale_ptr": "*fp32", "column_sums_ptr": "*i32",
    "bias_ptr": "*fp32", "out_ptr": "*bf16", "M": "i32", "N": "i32", "input_scale": "fp32", "input_zero": "i32",
    "inverse_output_scale": "fp32", "output_zero": "i32",
}
tile = {"OUT_LOWEST": -128, "OUT_HIGHEST": 127, "PER_TOKEN": True, "GELU": True, "SPLIT_K": 4}
report(CompileRequest(linear_triton._finish_split_kernel, split, {**tile, "BLOCK_M": 8, "BLOCK_N": 128}, 4, 3))
"""


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_what_is_launched_untuned_compiles_without_spills(target: str) -> None:
    """In a process of its own: here Triton interprets. `psaq tune --target` compiles every candidate."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run([sys.executable, "-c", COMPILE, target], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(linear_configs._MODEL_VARIANTS) + 3
    assert all(fits for *_, fits in found), found

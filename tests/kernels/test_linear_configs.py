"""Configurations of the integer linear layer: always valid, within every device's limits, without spills."""

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
        "group": st.sampled_from([0, 32, 64, 128]),
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
            "group": 0,
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
        return bucket({**shape, "x": "bf16", "scale": "tensor", "packed": 0, "group": 0, "out": "bf16"})

    assert of(1025) == of(2048) != of(2049)
    assert of(1) == of(16)


@pytest.mark.parametrize(("packed", "group"), [(0, 0), (1, 0), (0, 32), (1, 64)])
def test_an_example_is_the_problem(packed: int, group: int) -> None:
    shape = {"rows": 5, "outputs": 6, "inputs": 80}
    problem = {**shape, "x": "bf16", "scale": "token", "packed": packed, "group": group, "out": "fp32"}
    x, weight, input, out = example(problem, torch.device("cpu"))
    assert linear_configs.problem_of(x, weight, input, out.dtype) == problem
    assert out.shape == (5, 6)


@pytest.mark.parametrize(
    ("inputs", "packed", "group", "whole"),
    [
        (256, 0, 0, True),
        (255, 0, 0, False),
        (256, 1, 0, True),
        (255, 1, 0, False),
        (192, 1, 64, True),
        (192, 1, 128, False),
        (192, 0, 128, False),
    ],
)
def test_masks_are_left_out_only_where_every_step_is_whole(inputs: int, packed: int, group: int, whole: bool) -> None:
    shape = {"rows": 64, "outputs": 64, "inputs": inputs}
    problem = {**shape, "x": "i8", "scale": "tensor", "packed": packed, "group": group, "out": "i8"}
    assert is_whole(problem, default(problem, TARGETS["sm_90"])) is whole


def test_the_bound_is_traffic_for_thin_and_products_for_thick_matrices() -> None:
    rates = MachineRates(bytes_per_second=1e12, flops_per_second={"int8": 2e15})
    kinds = {"x": "i8", "scale": "tensor", "packed": 0, "group": 0, "out": "i8"}
    thin = {"rows": 1, "outputs": 1024, "inputs": 1024, **kinds}
    assert linear_configs.bound(thin, rates) == pytest.approx((1024 + 1024**2 + 1024) / 1e12)
    thick = {**thin, "rows": 4096, "outputs": 4096, "inputs": 4096}
    assert linear_configs.bound(thick, rates) == pytest.approx(2 * 4096**3 / 2e15)

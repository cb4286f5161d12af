"""A process with one Triton that compiles what it is asked for: lines of a target and a choice in, findings out."""

import json
import multiprocessing
import sys
from collections.abc import Iterator
from typing import Any

from psaq_kernels import layer_norm_triton, levels_triton, linear_triton
from psaq_kernels.aot import check_request, distinct_candidates, target_limits
from psaq_kernels.tunable import CompileRequest, Config, Workload, tunables
from psaq_kernels.tuning import triton_version

WORKLOADS = [
    Workload("ViT and Swin", ((32, 1, 196, 64), (32, 64, 49, 33)), ((6304, 768, 3072), (32, 1000, 768))),
    *(Workload(f"{channels} channels", features=((8, 1, 4096, channels),)) for channels in (8, 1024, 1536)),
]

Named = tuple[str, Config, CompileRequest]


def chosen(target: str, choice: str) -> list[Named]:
    """What is compiled, with the kernel's name and the configuration."""
    if choice == "untuned":
        return [("", Config({}, 4, 3), request) for request in untuned()]
    found = list(defaults(target) if choice == "defaults" else distinct_candidates(tunables(), WORKLOADS, target))
    if choice == "split":
        found = [each for each in found if each[2].constants.get("SPLIT_K", 1) > 1]
    if choice == "unpacking":  # beside values that are quantised on the way
        unpacked = [each for each in found if each[1].get("packed") and each[1]["x"] == "bf16"]
        smallest = {"BLOCK_M": 32, "QUANTIZE_FIRST": 0}
        found = [each for each in unpacked if smallest.items() <= each[2].constants.items()]
    return [(kernel.name, config, kernel.compile_request(problem, config)) for kernel, problem, config in found]


def defaults(target: str) -> Iterator[Any]:
    for kernel in tunables():
        for problem in kernel.problems(WORKLOADS[0]):
            yield kernel, problem, kernel.default(problem, target_limits(target))


def untuned() -> list[CompileRequest]:
    """What is launched with one configuration only: levels by rows, LayerNorm to levels, the sum of split products."""
    levels = {"LOWEST": -127, "HIGHEST": 127, "column_stride": 1}
    common = {"x_ptr": "*bf16", "levels_ptr": "*i8", "row_stride": "i32", "inverse_scale": "fp32", "zero": "i32"}
    rows = {**common, "K": "i32", "row_scale_ptr": "*fp32"}
    norm = {**common, "weight_ptr": "*fp32", "bias_ptr": "*fp32", "channels": "i32", "eps": "fp32"}
    split = {
        "partial_ptr": "*i32",
        "row_scale_ptr": "*fp32",
        "weight_scale_ptr": "*fp32",
        "column_sums_ptr": "*i32",
        "bias_ptr": "*fp32",
        "out_ptr": "*bf16",
        "M": "i32",
        "N": "i32",
        "input_scale": "fp32",
        "input_zero": "i32",
        "inverse_output_scale": "fp32",
        "output_zero": "i32",
    }
    tile = {"OUT_LOWEST": -128, "OUT_HIGHEST": 127, "PER_TOKEN": True, "GELU": True, "BLOCK_M": 8, "BLOCK_N": 128}
    return [
        CompileRequest(levels_triton._quantize_rows_kernel, rows, {**levels, "BLOCK_K": 4096}, 8, 3, fp_fusion=False),
        CompileRequest(layer_norm_triton._layer_norm_quantize_kernel, norm, {**levels, "BLOCK": 1024}, 4, 3),
        CompileRequest(linear_triton._finish_split_kernel, split, {**tile, "SPLIT_K": 4}, 4, 3, fp_fusion=False),
    ]


def check(index: int) -> list[Any]:
    name, config, request = candidates[index]
    finding = check_request(name, config, request, target)
    return [name, str(config), str(finding.resources), finding.error, finding.is_good]


for line in sys.stdin:
    target, choice = json.loads(line)
    candidates = chosen(target, choice)
    with multiprocessing.get_context("fork").Pool() as pool:  # a core to a compilation
        findings = pool.map(check, range(len(candidates)), chunksize=1)
    print(json.dumps({"triton": triton_version(), "found": findings}), flush=True)

# mypy: disallow-incomplete-defs=False
"""The quantised linear layer in Triton: quantise, multiply, correct, scale, add, activate and requantise in one kernel.

Every product with a scale and every sum is rounded by itself (no fused multiply-add), so that the results are the
torch backend's to the last bit.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int8
from torch import Tensor

from psaq_kernels import levels_triton, linear_configs, tuning
from psaq_kernels.devices import DeviceLimits
from psaq_kernels.epilogue import Epilogue
from psaq_kernels.levels import PerTensor, PerToken
from psaq_kernels.levels_triton import checked_magnitude, launch_levels, magnitude_bits, quantize_rows, to_levels
from psaq_kernels.linear_configs import problem_of
from psaq_kernels.packing import QuantizedWeight
from psaq_kernels.stable_keys import settle_keys
from psaq_kernels.tunable import CompileRequest, Config, MachineRates, Problem, Tunable, Workload

_FINISH_BLOCK_M, _FINISH_BLOCK_N = 8, 128  # the tile in which split sums are added up
_INVERSE_SQRT2 = tl.constexpr(0.7071067811865476)


@triton.jit
def _tile(M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """Which tile this program computes: down GROUP_M rows of tiles, then on, so that neighbours share L2."""
    index = tl.program_id(0)
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    group = index // (GROUP_M * tiles_n)
    first = group * GROUP_M
    height = tl.minimum(tiles_m - first, GROUP_M)
    within = index % (GROUP_M * tiles_n)
    return first + within % height, within // height


@triton.jit
def _load_x(x_ptr, rows, k, K, row_stride, column_stride, WHOLE: tl.constexpr):
    pointers = x_ptr + rows.to(tl.int64) * row_stride + k * column_stride
    if WHOLE:
        return tl.load(pointers)
    return tl.load(pointers, mask=k < K, other=0)


@triton.jit
def _load_levels(
    x_ptr, rows, k, K, row_stride, column_stride, inverse, zero,
    WHOLE: tl.constexpr, LOWEST: tl.constexpr, HIGHEST: tl.constexpr,
):  # fmt: skip
    """A tile of x as levels. Where x ends their value does not matter: the weight there is zero."""
    x = _load_x(x_ptr, rows, k, K, row_stride, column_stride, WHOLE)
    if x_ptr.dtype.element_ty == tl.int8:
        return x
    return to_levels(x, inverse, zero, LOWEST, HIGHEST)


@triton.jit
def _row_magnitude(
    x_ptr, rows, k, K, row_stride, column_stride, BLOCK_K: tl.constexpr, WHOLE: tl.constexpr, AXIS: tl.constexpr
):
    """The largest magnitude in each row of x, from a pass of its own along the row."""
    largest = tl.zeros((rows + k).shape, tl.int32)
    for start in range(0, K, BLOCK_K):
        x = _load_x(x_ptr, rows, start + k, K, row_stride, column_stride, WHOLE)
        largest = tl.maximum(largest, magnitude_bits(x))
    return checked_magnitude(tl.max(largest, axis=AXIS, keep_dims=True))


@triton.jit
def _row_scales(
    x_ptr, row_scale_ptr, rows, k, K, row_stride, column_stride, inverse_input_scale,
    PER_TOKEN: tl.constexpr, HIGHEST: tl.constexpr, BLOCK_K: tl.constexpr, WHOLE: tl.constexpr, AXIS: tl.constexpr,
):  # fmt: skip
    """Each row's scale, and what x is multiplied by to become levels. One scale for all is left to the end."""
    row_scale = 1.0
    if PER_TOKEN:
        if row_scale_ptr is not None:
            row_scale = tl.load(row_scale_ptr + rows)
        else:
            magnitude = _row_magnitude(x_ptr, rows, k, K, row_stride, column_stride, BLOCK_K, WHOLE, AXIS)
            row_scale = tl.math.div_rn(magnitude, float(HIGHEST))
            inverse_input_scale = tl.math.div_rn(float(HIGHEST), magnitude)
    return row_scale, inverse_input_scale


@triton.jit
def _finish(
    accumulators, row_scale, rows, columns,
    weight_scale_ptr, column_sums_ptr, bias_ptr, out_ptr, M, N,
    input_scale, input_zero, inverse_output_scale, output_zero,
    PER_TOKEN: tl.constexpr, GROUP: tl.constexpr, GELU: tl.constexpr,
    OUT_LOWEST: tl.constexpr, OUT_HIGHEST: tl.constexpr,
):  # fmt: skip
    """From integer sums, or those of groups times their scales, to the output tile."""
    within = columns < N
    weight_scale = 1.0 if GROUP else tl.load(weight_scale_ptr + columns, mask=within, other=0.0)
    if GROUP:
        y = accumulators * (row_scale if PER_TOKEN else input_scale)
    elif PER_TOKEN:
        y = accumulators.to(tl.float32) * weight_scale * row_scale
    else:
        accumulators -= tl.load(column_sums_ptr + columns, mask=within, other=0) * input_zero
        y = accumulators.to(tl.float32) * (weight_scale * input_scale)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + columns, mask=within, other=0.0)
    if GELU:
        y = 0.5 * y * (1.0 + tl.math.erf(y * _INVERSE_SQRT2))
    if out_ptr.dtype.element_ty == tl.int8:
        y = to_levels(y, inverse_output_scale, output_zero, OUT_LOWEST, OUT_HIGHEST)
    out = y.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + rows.to(tl.int64) * N + columns, out, mask=(rows < M) & within)


@triton.jit
def _accumulate(
    x_ptr, weight_ptr, rows, columns, x_k, w_k, begin, end, K, length, row_stride, column_stride, inverse, zero,
    PACKED: tl.constexpr, WHOLE: tl.constexpr, LOWEST: tl.constexpr, HIGHEST: tl.constexpr, BLOCK_K: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """The integer products of a tile, summed over [begin, end) of the weight's row."""
    accumulators = tl.zeros(TILE, tl.int32)
    w_pointers = weight_ptr + columns.to(tl.int64) * length + w_k
    for start in range(begin, end, BLOCK_K):
        w = tl.load(w_pointers + start) if WHOLE else tl.load(w_pointers + start, mask=w_k < length - start, other=0)
        x = _load_levels(
            x_ptr, rows, start + x_k, K, row_stride, column_stride, inverse, zero, WHOLE, LOWEST, HIGHEST
        )  # fmt: skip
        if PACKED:
            x_high = _load_levels(
                x_ptr, rows, length + start + x_k, K, row_stride, column_stride, inverse, zero, WHOLE, LOWEST, HIGHEST
            )  # fmt: skip
            # A nibble in the upper half of a byte is sixteen times its value, and needs no sign extension.
            accumulators = tl.dot(w << 4, x, accumulators, out_dtype=tl.int32)
            accumulators = tl.dot(w & -16, x_high, accumulators, out_dtype=tl.int32)
        else:
            accumulators = tl.dot(x, w, accumulators, out_dtype=tl.int32)
    return accumulators >> 4 if PACKED else accumulators


@triton.jit
def _accumulate_groups(
    x_ptr, weight_ptr, weight_scale_ptr, column_sums_ptr, rows, columns, x_k, w_k, K, length,
    row_stride, column_stride, inverse, zero,
    PACKED: tl.constexpr, WHOLE: tl.constexpr, LOWEST: tl.constexpr, HIGHEST: tl.constexpr,
    PER_TOKEN: tl.constexpr, GROUP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The integer products of a tile, each group's sum times its scale, one added after the other."""
    HALF: tl.constexpr = GROUP // 2
    groups = tl.cdiv(K, GROUP)
    w_pointers = weight_ptr + columns.to(tl.int64) * length + (w_k % HALF if PACKED else w_k)
    totals = tl.zeros(TILE, tl.float32)
    for group in range(0, groups):
        start = group * GROUP
        x = _load_levels(
            x_ptr, rows, start + x_k, K, row_stride, column_stride, inverse, zero, WHOLE, LOWEST, HIGHEST
        )  # fmt: skip
        if PACKED:  # each byte is read for the first half of the group and for the second
            w = tl.load(w_pointers + group * HALF)
            sums = tl.dot(tl.where(w_k < HALF, w << 4, w & -16), x, out_dtype=tl.int32) >> 4
        else:
            w = tl.load(w_pointers + start) if WHOLE else tl.load(w_pointers + start, mask=w_k < K - start, other=0)
            sums = tl.dot(x, w, out_dtype=tl.int32)
        if not PER_TOKEN:
            sums -= tl.load(column_sums_ptr + columns * groups + group) * zero
        totals += sums.to(tl.float32) * tl.load(weight_scale_ptr + columns * groups + group)
    return totals


@triton.jit
def _halves(x):
    """The left and the right half of a tile."""
    return x.reshape(x.shape[0], 2, x.shape[1] // 2).permute(0, 2, 1).split()


@triton.jit
def _finish_by_halves(
    accumulators, row_scale, first_m, first_n,
    weight_scale_ptr, column_sums_ptr, bias_ptr, out_ptr, M, N,
    input_scale, input_zero, inverse_output_scale, output_zero,
    PER_TOKEN: tl.constexpr, PACKED: tl.constexpr, GROUP: tl.constexpr, GELU: tl.constexpr,
    OUT_LOWEST: tl.constexpr, OUT_HIGHEST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One half of the tile after the other: half as many scales, sums and biases in registers at a time."""
    HALF_M: tl.constexpr = BLOCK_M // 2 if PACKED else BLOCK_M
    HALF_N: tl.constexpr = BLOCK_N if PACKED else BLOCK_N // 2
    halves = _halves(accumulators)
    for part in tl.static_range(2):
        m = tl.expand_dims(first_m + (part * HALF_M if PACKED else 0) + tl.arange(0, HALF_M), 0 if PACKED else 1)
        n = tl.expand_dims(first_n + (0 if PACKED else part * HALF_N) + tl.arange(0, HALF_N), 1 if PACKED else 0)
        half_scale = _halves(row_scale)[part] if PER_TOKEN and PACKED else row_scale
        _finish(
            halves[part], half_scale, m, n, weight_scale_ptr, column_sums_ptr, bias_ptr, out_ptr, M, N,
            input_scale, input_zero, inverse_output_scale, output_zero,
            PER_TOKEN, GROUP, GELU, OUT_LOWEST, OUT_HIGHEST,
        )  # fmt: skip


@triton.jit(do_not_specialize=["M", "input_zero", "output_zero"])
def _quant_linear_kernel(
    x_ptr,  # (M, K) float, or int8 levels
    row_scale_ptr,  # (M,) float32 where x is levels per token, else None
    weight_ptr,  # (N, K) int8, or (N, length) bytes of two nibbles
    weight_scale_ptr,  # (N,) or (N, groups) float32
    column_sums_ptr,  # (N,) or (N, groups) int32
    bias_ptr,  # (N,) float32, or None
    out_ptr,  # (M, N) float or int8; (SPLIT_K, M, N) int32 where SPLIT_K > 1
    M,
    N,
    K,
    length,  # of a row of the weight in bytes
    row_stride,  # of x
    column_stride,
    input_scale,
    inverse_input_scale,
    input_zero,
    inverse_output_scale,
    output_zero,
    LOWEST: tl.constexpr,  # input levels
    HIGHEST: tl.constexpr,
    OUT_LOWEST: tl.constexpr,  # output levels
    OUT_HIGHEST: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    PACKED: tl.constexpr,
    GROUP: tl.constexpr,  # BLOCK_K where inputs have scales in groups, else 0
    GELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    SPLIT_K: tl.constexpr,
    WHOLE: tl.constexpr,  # BLOCK_K divides the weight's row
):
    # The factor that is computed in registers stands left, from where Hopper's tensor cores read registers:
    # x·Wᵀ where x is quantised on the way, W·xᵀ where the weight is unpacked. M_AXIS is where the tile has x's rows.
    M_AXIS: tl.constexpr = 1 if PACKED else 0
    N_AXIS: tl.constexpr = 1 - M_AXIS
    TILE: tl.constexpr = (BLOCK_N, BLOCK_M) if PACKED else (BLOCK_M, BLOCK_N)
    tile_m, tile_n = _tile(M, N, BLOCK_M, BLOCK_N, GROUP_M)
    m = tl.expand_dims(tile_m * BLOCK_M + tl.arange(0, BLOCK_M), N_AXIS)
    n = tl.expand_dims(tile_n * BLOCK_N + tl.arange(0, BLOCK_N), M_AXIS)
    x_k = tl.expand_dims(tl.arange(0, BLOCK_K), M_AXIS)
    w_k = tl.expand_dims(tl.arange(0, BLOCK_K), N_AXIS)
    rows, columns = m % M, n % N  # beyond the end, read what is there; it is not written

    row_scale, inverse_input_scale = _row_scales(
        x_ptr, row_scale_ptr, rows, x_k, K, row_stride, column_stride, inverse_input_scale,
        PER_TOKEN, HIGHEST, BLOCK_K, WHOLE, N_AXIS,
    )  # fmt: skip
    if GROUP:
        accumulators = _accumulate_groups(
            x_ptr, weight_ptr, weight_scale_ptr, column_sums_ptr, rows, columns, x_k, w_k, K, length,
            row_stride, column_stride, inverse_input_scale, input_zero,
            PACKED, WHOLE, LOWEST, HIGHEST, PER_TOKEN, GROUP, TILE,
        )  # fmt: skip
    else:
        share = tl.cdiv(tl.cdiv(length, BLOCK_K), SPLIT_K) * BLOCK_K
        begin = tl.program_id(1) * share
        accumulators = _accumulate(
            x_ptr, weight_ptr, rows, columns, x_k, w_k, begin, tl.minimum(begin + share, length), K, length,
            row_stride, column_stride, inverse_input_scale, input_zero, PACKED, WHOLE, LOWEST, HIGHEST, BLOCK_K, TILE,
        )  # fmt: skip

    if SPLIT_K > 1:
        # Only where the tile begins may leave 32 bits: offsets of 64 in it would cost registers that some GPUs lack.
        begins = (tl.program_id(1).to(tl.int64) * M + tile_m * BLOCK_M) * N + tile_n * BLOCK_N
        within = (m - tile_m * BLOCK_M) * N + (n - tile_n * BLOCK_N)
        tl.store(out_ptr + begins + within, accumulators, mask=(m < M) & (n < N))
    else:
        _finish_by_halves(
            accumulators, row_scale, tile_m * BLOCK_M, tile_n * BLOCK_N,
            weight_scale_ptr, column_sums_ptr, bias_ptr, out_ptr, M, N,
            input_scale, input_zero, inverse_output_scale, output_zero,
            PER_TOKEN, PACKED, GROUP, GELU, OUT_LOWEST, OUT_HIGHEST, BLOCK_M, BLOCK_N,
        )  # fmt: skip


@triton.jit(do_not_specialize=["M", "input_zero", "output_zero"])
def _finish_split_kernel(
    partial_ptr,  # (SPLIT_K, M, N) int32
    row_scale_ptr,  # (M,) float32, or None
    weight_scale_ptr,
    column_sums_ptr,
    bias_ptr,
    out_ptr,  # (M, N)
    M,
    N,
    input_scale,
    input_zero,
    inverse_output_scale,
    output_zero,
    OUT_LOWEST: tl.constexpr,
    OUT_HIGHEST: tl.constexpr,
    PER_TOKEN: tl.constexpr,
    GELU: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    rows = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    columns = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    within = (rows < M) & (columns < N)
    pointers = partial_ptr + rows.to(tl.int64) * N + columns
    accumulators = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for part in tl.static_range(SPLIT_K):
        accumulators += tl.load(pointers + part * M.to(tl.int64) * N, mask=within, other=0)
    row_scale = 1.0
    if PER_TOKEN:
        row_scale = tl.load(row_scale_ptr + rows, mask=rows < M, other=0.0)
    _finish(
        accumulators, row_scale, rows, columns,
        weight_scale_ptr, column_sums_ptr, bias_ptr, out_ptr, M, N,
        input_scale, input_zero, inverse_output_scale, output_zero,
        PER_TOKEN, 0, GELU, OUT_LOWEST, OUT_HIGHEST,
    )  # fmt: skip


def quant_linear(
    x: Float[Tensor, "rows inputs"] | Int8[Tensor, "rows inputs"],
    weight: QuantizedWeight,
    input: PerTensor | PerToken,
    epilogue: Epilogue,
) -> Float[Tensor, "rows outputs"] | Int8[Tensor, "rows outputs"]:
    """See `psaq_kernels.quant_linear`."""
    out = torch.empty(x.shape[0], weight.outputs, dtype=epilogue.dtype, device=x.device)
    if out.numel() == 0:
        return out
    problem = problem_of(x, weight, input, epilogue.dtype)
    config = tuning.configuration(QUANT_LINEAR, problem, x.device)
    with torch.cuda.device_of(x):
        launch(config, x, weight, input, epilogue, out)
    return out


def launch(
    config: Config,
    x: Tensor,
    weight: QuantizedWeight,
    input: PerTensor | PerToken,
    epilogue: Epilogue,
    out: Float[Tensor, "rows outputs"] | Int8[Tensor, "rows outputs"],
) -> None:
    """Compute into ``out`` with a given configuration."""
    constants = dict(config.constants)
    row_scale = None
    if constants.pop("QUANTIZE_FIRST") and x.dtype != torch.int8:
        x, row_scale = quantize_rows(x, input)
    (M, K), N, splits = x.shape, weight.outputs, int(constants["SPLIT_K"])
    target = out if splits == 1 else torch.empty(splits, M, N, dtype=torch.int32, device=x.device)
    finish = _finish_arguments(input, epilogue)
    inverse, _, lowest, highest = launch_levels(input)
    grid = (triton.cdiv(M, int(constants["BLOCK_M"])) * triton.cdiv(N, int(constants["BLOCK_N"])), splits)
    per_output = (weight.scale, weight.column_sums, epilogue.bias)
    _quant_linear_kernel[grid](
        x,
        row_scale,
        weight.values.view(torch.int8),
        *per_output,
        target,
        M,
        N,
        K,
        weight.values.shape[1],
        *x.stride(),
        inverse_input_scale=inverse,
        LOWEST=lowest,
        HIGHEST=highest,
        PACKED=weight.packed,
        GROUP=weight.group or 0,
        WHOLE=linear_configs.is_whole(problem_of(x, weight, input, out.dtype), config),
        **finish,
        **constants,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        enable_fp_fusion=False,
    )
    if splits > 1:
        _finish_split(target, row_scale, per_output, out, finish)


def _finish_split(
    partial: Tensor,
    row_scale: Tensor | None,
    per_output: tuple[Tensor | None, ...],
    out: Tensor,
    finish: dict[str, Any],
) -> None:
    splits, M, N = partial.shape
    grid = (triton.cdiv(M, _FINISH_BLOCK_M), triton.cdiv(N, _FINISH_BLOCK_N))
    _finish_split_kernel[grid](
        partial,
        row_scale,
        *per_output,
        out,
        M,
        N,
        **finish,
        SPLIT_K=splits,
        BLOCK_M=_FINISH_BLOCK_M,
        BLOCK_N=_FINISH_BLOCK_N,
        num_warps=4,
        enable_fp_fusion=False,
    )


def _finish_arguments(input: PerTensor | PerToken, epilogue: Epilogue) -> dict[str, Any]:
    """What `_finish` takes beside tensors and shapes."""
    _, input_zero, _, _ = launch_levels(input)
    inverse, zero, lowest, highest = (1.0, 0, 0, 0) if epilogue.output is None else launch_levels(epilogue.output)
    return {
        "input_scale": input.scale if isinstance(input, PerTensor) else 1.0,
        "input_zero": input_zero,
        "inverse_output_scale": inverse,
        "output_zero": zero,
        "OUT_LOWEST": lowest,
        "OUT_HIGHEST": highest,
        "PER_TOKEN": isinstance(input, PerToken),
        "GELU": epilogue.gelu,
    }


class _QuantLinear(Tunable):
    """The kernel, as the tuner sees it."""

    name = "quant_linear"
    source_modules = (levels_triton.__name__,)

    def problems(self, workload: Workload) -> list[Problem]:
        return linear_configs.problems(workload)

    def bucket(self, problem: Problem) -> str:
        return linear_configs.bucket(problem)

    def default(self, problem: Problem, limits: DeviceLimits) -> Config:
        return linear_configs.default(problem, limits)

    def candidates(self, problem: Problem, limits: DeviceLimits) -> list[Config]:
        return linear_configs.candidates(problem, limits)

    def reckon(self, config: Config, problem: Problem, limits: DeviceLimits) -> float:
        return linear_configs.reckon(config, problem, limits)

    def bound(self, problem: Problem, rates: MachineRates) -> float:
        return linear_configs.bound(problem, rates)

    def prepare(self, problem: Problem, device: torch.device) -> Callable[[Config], None]:
        x, weight, input, out = linear_configs.example(problem, device)
        epilogue = Epilogue(bias=None, gelu=False, output=None, dtype=out.dtype)
        return lambda config: launch(config, x, weight, input, epilogue, out)

    def compile_request(self, problem: Problem, config: Config) -> CompileRequest:
        signature = _signature(problem, config)
        length = linear_configs.weight_length(problem)
        sizes = {"N": problem["outputs"], "K": problem["inputs"], "row_stride": problem["inputs"], "length": length}
        return CompileRequest(
            _quant_linear_kernel,
            signature,
            _constants(problem, config, {"row_scale_ptr", "bias_ptr"} - signature.keys()),
            config.num_warps,
            config.num_stages,
            aligned=[name for name, kind in signature.items() if kind[0] == "*" or sizes.get(name, 1) % 16 == 0],
            fp_fusion=False,
        )


def _signature(problem: Problem, config: Config) -> dict[str, str]:
    """The kernel's run-time arguments and their Triton types, with a bias."""
    x = "i8" if config.constants["QUANTIZE_FIRST"] else problem["x"]
    out = "i32" if config.constants["SPLIT_K"] != 1 else problem["out"]
    row_scale = {"row_scale_ptr": "*fp32"} if x == "i8" and problem["scale"] == "token" else {}
    pointers = {"weight_ptr": "*i8", "weight_scale_ptr": "*fp32", "column_sums_ptr": "*i32", "bias_ptr": "*fp32"}
    integers = ("M", "N", "K", "length", "row_stride", "input_zero", "output_zero")
    reals = ("input_scale", "inverse_input_scale", "inverse_output_scale")
    return {
        "x_ptr": f"*{x}",
        "out_ptr": f"*{out}",
        **row_scale,
        **pointers,
        **dict.fromkeys(integers, "i32"),
        **dict.fromkeys(reals, "fp32"),
    }


def _constants(problem: Problem, config: Config, absent: set[str]) -> dict[str, int | str | bool | None]:
    """The kernel's compile-time arguments, for 8-bit levels and with a GELU."""
    tile = {name: value for name, value in config.constants.items() if name != "QUANTIZE_FIRST"}
    return {
        **tile,
        **dict.fromkeys(absent),
        "column_stride": 1,
        "LOWEST": -127 if problem["scale"] == "token" else -128,
        "HIGHEST": 127,
        "OUT_LOWEST": -128,
        "OUT_HIGHEST": 127,
        "PER_TOKEN": problem["scale"] == "token",
        "PACKED": bool(problem["packed"]),
        "GROUP": problem["group"],
        "GELU": True,
        "WHOLE": linear_configs.is_whole(problem, config),
    }


QUANT_LINEAR = _QuantLinear()
TUNABLES = (QUANT_LINEAR,)


settle_keys(globals())

# mypy: disallow-incomplete-defs=False
"""Activations to 8-bit levels in Triton: the arithmetic that the kernels share, and the kernel that does only that."""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float32, Int8
from torch import Tensor

from psaq_kernels.levels import SMALLEST_MAGNITUDE, PerTensor, PerToken
from psaq_kernels.stable_keys import settle_keys

_SMALLEST = tl.constexpr(SMALLEST_MAGNITUDE)
# Adding it leaves no bits below the units, and rounds to them half to even; libdevice's round goes away from zero.
_ONE_AND_A_HALF_TO_THE_23 = tl.constexpr(12582912.0)


@triton.jit
def round_half_even(x):
    """x, of magnitude below 2^22, rounded to the nearest integer."""
    return (x + _ONE_AND_A_HALF_TO_THE_23) - _ONE_AND_A_HALF_TO_THE_23


@triton.jit
def to_levels(x, inverse_scale, zero, LOWEST: tl.constexpr, HIGHEST: tl.constexpr):
    """The stored levels of x. The maximum drops a NaN, which thereby becomes the lowest level."""
    lowest = (LOWEST - zero).to(tl.float32)
    highest = (HIGHEST - zero).to(tl.float32)
    scaled = tl.minimum(tl.maximum(x.to(tl.float32) * inverse_scale, lowest), highest)
    return (round_half_even(scaled).to(tl.int32) + zero).to(tl.int8)


@triton.jit
def magnitude_bits(x):
    """|x| as an integer that sorts like it, with infinity and then NaN above all numbers."""
    return tl.abs(x.to(tl.float32)).to(tl.int32, bitcast=True)


@triton.jit
def checked_magnitude(bits):
    """The largest magnitude of a row from its `magnitude_bits`: never below the smallest, NaN where not finite."""
    magnitude = bits.to(tl.float32, bitcast=True)
    return tl.where(magnitude < float("inf"), tl.maximum(magnitude, _SMALLEST), float("nan"))


@triton.jit(do_not_specialize=["zero"])
def _quantize_rows_kernel(
    x_ptr,  # (M, K) float
    levels_ptr,  # (M, K) int8
    row_scale_ptr,  # (M,) float32, or None
    K,
    row_stride,
    column_stride,
    inverse_scale,
    zero,
    LOWEST: tl.constexpr,
    HIGHEST: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    x = tl.load(x_ptr + row * row_stride + k * column_stride, mask=k < K, other=0.0)
    if row_scale_ptr is not None:
        magnitude = checked_magnitude(tl.max(magnitude_bits(x)))
        tl.store(row_scale_ptr + row, tl.math.div_rn(magnitude, float(HIGHEST)))
        inverse_scale = tl.math.div_rn(float(HIGHEST), magnitude)
    tl.store(levels_ptr + row * K + k, to_levels(x, inverse_scale, zero, LOWEST, HIGHEST), mask=k < K)


def quantize_rows(
    x: Float[Tensor, "rows inputs"], input: PerTensor | PerToken
) -> tuple[Int8[Tensor, "rows inputs"], Float32[Tensor, "rows"] | None]:
    """The stored levels of each row and, per token, its scale."""
    rows, inputs = x.shape
    per_token = isinstance(input, PerToken)
    levels = torch.empty(rows, inputs, dtype=torch.int8, device=x.device)
    row_scale = torch.empty(rows, dtype=torch.float32, device=x.device) if per_token else None
    block = triton.next_power_of_2(inputs)
    _quantize_rows_kernel[(rows,)](
        x,
        levels,
        row_scale,
        inputs,
        *x.stride(),
        *launch_levels(input),
        BLOCK_K=block,
        num_warps=row_warps(block),
        enable_fp_fusion=False,
    )
    return levels, row_scale


def launch_levels(grid: PerTensor | PerToken) -> tuple[float, int, int, int]:
    """What `to_levels` takes: the inverse scale, the stored zero, and the lowest and highest stored level."""
    if isinstance(grid, PerToken):
        return 1.0, 0, -grid.highest, grid.highest
    return grid.inverse_scale, grid.stored_zero, *grid.stored_range


def row_warps(block: int) -> int:
    """Warps for a program that holds one row of ``block`` elements: eight elements to a thread."""
    return min(max(block // 256, 1), 8)


settle_keys(globals())

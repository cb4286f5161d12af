# mypy: disallow-incomplete-defs=False
"""Layer normalisation that emits 8-bit levels, in Triton: one program to a row."""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float32, Int8
from torch import Tensor

from psaq_kernels.levels import PerTensor
from psaq_kernels.levels_triton import launch_levels, row_warps, to_levels
from psaq_kernels.stable_keys import settle_keys


@triton.jit(do_not_specialize=["zero"])
def _layer_norm_quantize_kernel(
    x_ptr,  # (rows, channels) float
    weight_ptr,  # (channels,) float32
    bias_ptr,  # (channels,) float32
    levels_ptr,  # (rows, channels) int8
    channels,
    row_stride,
    column_stride,
    eps,
    inverse_scale,
    zero,
    LOWEST: tl.constexpr,
    HIGHEST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    within = channel < channels
    x = tl.load(x_ptr + row * row_stride + channel * column_stride, mask=within, other=0.0).to(tl.float32)
    centred = tl.where(within, x - tl.sum(x) / channels, 0.0)
    deviation = tl.sqrt_rn(tl.sum(centred * centred) / channels + eps)
    weight = tl.load(weight_ptr + channel, mask=within, other=0.0)
    bias = tl.load(bias_ptr + channel, mask=within, other=0.0)
    levels = to_levels(centred / deviation * weight + bias, inverse_scale, zero, LOWEST, HIGHEST)
    tl.store(levels_ptr + row * channels + channel, levels, mask=within)


def layer_norm_quantize(
    x: Float[Tensor, "rows channels"],
    weight: Float32[Tensor, "channels"],
    bias: Float32[Tensor, "channels"],
    eps: float,
    output: PerTensor,
) -> Int8[Tensor, "rows channels"]:
    """See `psaq_kernels.layer_norm_quantize`."""
    levels = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    block = triton.next_power_of_2(x.shape[1])
    if x.shape[0]:
        with torch.cuda.device_of(x):
            _layer_norm_quantize_kernel[(x.shape[0],)](
                x,
                weight,
                bias,
                levels,
                x.shape[1],
                *x.stride(),
                eps,
                *launch_levels(output),
                BLOCK=block,
                num_warps=row_warps(block),
                enable_fp_fusion=True,
            )
    return levels


settle_keys(globals())

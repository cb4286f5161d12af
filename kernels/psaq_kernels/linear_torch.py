"""The quantised linear layer in plain torch: the same integers as the Triton kernel, on any device."""

import functools

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int8, Int32
from torch import Tensor

from psaq_kernels.epilogue import Epilogue
from psaq_kernels.levels import SMALLEST_MAGNITUDE, PerTensor, PerToken
from psaq_kernels.packing import QuantizedWeight

CACHED = 400_000  # values that a CPU core takes from x to output at a time: they stay in its cache
EXACT_IN_FLOAT32 = 1024  # products of two int8, at most 2^14 each, that sum to at most 2^24
CUBLAS_MULTIPLE = 8  # torch._int_mm on CUDA wants inputs and outputs in multiples of this …
CUBLAS_ROWS = 17  # … and at least so many rows


def quant_linear(
    x: Float[Tensor, "rows inputs"] | Int8[Tensor, "rows inputs"],
    weight: QuantizedWeight,
    input: PerTensor | PerToken,
    epilogue: Epilogue,
) -> Float[Tensor, "rows outputs"] | Int8[Tensor, "rows outputs"]:
    """See `psaq_kernels.quant_linear`."""
    out = torch.empty(x.shape[0], weight.outputs, dtype=epilogue.dtype, device=x.device)
    integers = weight.integers().split(weight.group or weight.inputs, 1)
    parts = [part.contiguous() for part in integers]
    block = _rows_at_a_time(max(weight.inputs, weight.outputs)) if x.device.type == "cpu" else max(x.shape[0], 1)
    for rows, target in zip(x.split(block), out.split(block), strict=True):
        levels, input_scale = quantize_rows(rows, input)
        if weight.group is None:
            y = _scaled(integer_matmul(levels, parts[0]), weight, input, input_scale)
        else:
            y = _summed_by_groups(levels, parts, weight, input).mul_(input_scale)
        target.copy_(_finished(y, epilogue))
    return out


def _rows_at_a_time(columns: int) -> int:
    return max(CACHED * torch.get_num_threads() // columns, 1)


def _summed_by_groups(
    levels: Int8[Tensor, "rows inputs"],
    parts: list[Int8[Tensor, "outputs group"]],
    weight: QuantizedWeight,
    input: PerTensor | PerToken,
) -> Float32[Tensor, "rows outputs"]:
    """The sums of each group times its scale, one added after the other."""
    total = torch.zeros(len(levels), weight.outputs, device=levels.device)
    zero = input.stored_zero if isinstance(input, PerTensor) else 0
    in_groups = zip(levels.split(weight.group or 0, 1), parts, weight.scale.T, weight.column_sums.T, strict=True)
    for part, integers, scale, column_sums in in_groups:
        sums = integer_matmul(part.contiguous(), integers)
        total.add_(sums.sub_(column_sums * zero).float().mul_(scale))
    return total


def _scaled(
    sums: Int32[Tensor, "rows outputs"],
    weight: QuantizedWeight,
    input: PerTensor | PerToken,
    input_scale: Float32[Tensor, "rows 1"] | float,
) -> Float32[Tensor, "rows outputs"]:
    if isinstance(input, PerTensor):
        return sums.sub_(weight.column_sums * input.stored_zero).float().mul_(weight.scale * input_scale)
    return sums.float().mul_(weight.scale).mul_(input_scale)


def _finished(
    y: Float32[Tensor, "rows outputs"], epilogue: Epilogue
) -> Float32[Tensor, "rows outputs"] | Int8[Tensor, "rows outputs"]:
    y = y if epilogue.bias is None else y.add_(epilogue.bias)
    y = F.gelu(y) if epilogue.gelu else y
    return y if epilogue.output is None else to_levels(y, epilogue.output)


def quantize_rows(
    x: Float[Tensor, "rows inputs"] | Int8[Tensor, "rows inputs"], input: PerTensor | PerToken
) -> tuple[Int8[Tensor, "rows inputs"], Float32[Tensor, "rows 1"] | float]:
    """The rows' levels and their scales, one for all or one each. Levels that come in go out as they are."""
    if isinstance(input, PerToken):
        return _to_levels_per_token(x, input)
    return x if x.dtype == torch.int8 else to_levels(x, input), input.scale


def to_levels(x: Float[Tensor, "*shape"], grid: PerTensor) -> Int8[Tensor, "*shape"]:
    """The stored levels of ``x``."""
    lowest, highest = grid.stored_range
    zero = grid.stored_zero
    scaled = x.float() * grid.inverse_scale
    scaled.nan_to_num_(nan=lowest - zero).clamp_(lowest - zero, highest - zero)
    return scaled.round_().add_(zero).to(torch.int8)


def _to_levels_per_token(
    x: Float[Tensor, "rows inputs"], input: PerToken
) -> tuple[Int8[Tensor, "rows inputs"], Float32[Tensor, "rows 1"]]:
    x = x.float()
    magnitude = x.abs().amax(dim=1, keepdim=True).clamp_min_(SMALLEST_MAGNITUDE)
    # Tensors on both sides: a division by or of a number may be a product with a rounded inverse.
    highest = torch.full_like(magnitude, input.highest)
    levels = (x * (highest / magnitude)).nan_to_num_(nan=0).round_().to(torch.int8)
    return levels, torch.where(magnitude.isfinite(), magnitude / highest, torch.nan)


def integer_matmul(a: Int8[Tensor, "rows inputs"], b: Int8[Tensor, "outputs inputs"]) -> Int32[Tensor, "rows outputs"]:
    """a·bᵀ, exact, by the fastest way that this device has."""
    if a.device.type == "cuda":
        return padded_int_mm(a, b)
    if a.device.type == "cpu" and a.shape[1] > 1 and _has_fast_int_mm():  # one input it multiplies wrongly
        return torch._int_mm(a, b.t())
    return float_matmul(a, b)


def float_matmul(a: Int8[Tensor, "rows inputs"], b: Int8[Tensor, "outputs inputs"]) -> Int32[Tensor, "rows outputs"]:
    """a·bᵀ through float32, in stretches of inputs so short that every partial sum is an exact integer."""
    total = torch.zeros(a.shape[0], b.shape[0], dtype=torch.int32, device=a.device)
    for stretch_a, stretch_b in zip(a.split(EXACT_IN_FLOAT32, 1), b.split(EXACT_IN_FLOAT32, 1), strict=True):
        total += (stretch_a.float() @ stretch_b.float().t()).int()
    return total


def padded_int_mm(a: Int8[Tensor, "rows inputs"], b: Int8[Tensor, "outputs inputs"]) -> Int32[Tensor, "rows outputs"]:
    """a·bᵀ by ``torch._int_mm``, with zeros up to the sizes that cuBLAS accepts."""
    rows, outputs = a.shape[0], b.shape[0]
    inputs = -a.shape[1] % CUBLAS_MULTIPLE
    a = F.pad(a, (0, inputs, 0, max(CUBLAS_ROWS - rows, 0)))
    b = F.pad(b, (0, inputs, 0, -outputs % CUBLAS_MULTIPLE))
    return torch._int_mm(a, b.t())[:rows, :outputs].contiguous()


@functools.cache
def _has_fast_int_mm() -> bool:
    """Whether ``torch._int_mm`` runs on 8-bit dot-product instructions here.

    Without them it is slow, and older ones (vpmaddubsw) saturate, which the extreme product shows.
    """
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    dot_products = capabilities.get("avx512_vnni") or capabilities.get("avx_vnni")
    if not (torch.backends.mkldnn.is_available() and dot_products):
        return False
    extreme = torch.full((1, 64), -128, dtype=torch.int8)
    return torch._int_mm(extreme, extreme.t()).item() == 64 * 128 * 128

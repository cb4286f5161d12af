"""Layer normalisation that emits 8-bit levels, so that the linear layer behind it reads one byte per element."""

import importlib

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from psaq_kernels.backends import choose_backend
from psaq_kernels.levels import FLOAT_TYPES, PerTensor, as_bytes
from psaq_kernels.linear_onednn import layer_norm_bytes
from psaq_kernels.linear_torch import to_levels


def layer_norm_quantize(
    x: Float[Tensor, "*rows channels"],
    weight: Float[Tensor, "channels"],
    bias: Float[Tensor, "channels"],
    output: PerTensor,
    eps: float = 1e-6,
    backend: str | None = None,
    *,
    dtype: torch.dtype = torch.int8,
) -> Int8[Tensor, "*rows channels"] | UInt8[Tensor, "*rows channels"]:
    """The stored levels of LayerNorm(x) = (x − mean)/√(variance + eps) · weight + bias.

    Mean, variance and the result are float32. The backends add up a row in different orders, so a value that falls
    between two levels may come out one level apart. Inference only: no gradient.

    Args:
        x: (..., channels), float32, float16 or bfloat16, any strides.
        weight: (channels,).
        bias: (channels,).
        output: how the result is quantised.
        eps: added to the variance, positive.
        backend: "triton", "torch", or None for the best that can run.
        dtype: of the levels: int8, or uint8 for those from 0 to 2^bits − 1 that oneDNN reads. In torch the scale is
            then part of weight and bias, which rounds in another place, and a NaN becomes the level of zero.

    Raises:
        TypeError: an argument, which the message names, has an unsupported type or dtype.
        ValueError: the shapes or devices do not fit, or ``eps`` is not positive.
        BackendError: the backend asked for cannot run on x's device.
    """
    _check(x, weight, bias, output, eps)
    if dtype not in (torch.int8, torch.uint8):
        raise TypeError(f"dtype must be int8 or uint8, got {dtype}")
    chosen = choose_backend(backend, x.device)
    if dtype == torch.uint8 and chosen == "torch":
        inverse = output.inverse_scale
        return layer_norm_bytes(x, weight.float() * inverse, bias.float() * inverse, eps, output)
    levels = _layer_norm_quantize(
        x.reshape(-1, x.shape[-1]),
        weight.float(),
        bias.float(),
        float(eps),
        [output.bits, output.zero_point, output.scale],
        chosen,
    ).reshape(x.shape)
    return levels if dtype == torch.int8 else as_bytes(levels, output)


@torch.library.custom_op("psaq_kernels::layer_norm_quantize", mutates_args=())
def _layer_norm_quantize(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, output: list[float], backend: str
) -> Tensor:
    bits, zero_point, scale = output
    grid = PerTensor(scale, int(zero_point), int(bits))
    if backend == "torch":
        return to_levels(F.layer_norm(x.float(), x.shape[-1:], weight, bias, eps), grid)
    return importlib.import_module("psaq_kernels.layer_norm_triton").layer_norm_quantize(x, weight, bias, eps, grid)


@_layer_norm_quantize.register_fake
def _(x, weight, bias, eps, output, backend):
    return x.new_empty(x.shape, dtype=torch.int8)


def _check(x: Tensor, weight: Tensor, bias: Tensor, output: PerTensor, eps: float) -> None:
    if x.dtype not in FLOAT_TYPES:
        raise TypeError(f"x must be float32, float16 or bfloat16, got {x.dtype}")
    if not isinstance(output, PerTensor):
        raise TypeError(f"output must be PerTensor, got {type(output).__name__}")
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must be (..., channels) with at least one channel, got {tuple(x.shape)}")
    for name, vector in (("weight", weight), ("bias", bias)):
        if not vector.is_floating_point():
            raise TypeError(f"{name} must be floating-point, got {vector.dtype}")
        if vector.shape != x.shape[-1:] or vector.device != x.device:
            raise ValueError(
                f"{name} must be ({x.shape[-1]},) on {x.device}, got {tuple(vector.shape)} on {vector.device}"
            )
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}")

"""A linear layer in 8-bit integers: the operation, its registration with torch and the choice of backend."""

import importlib
from typing import Any, Literal

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from psaq_kernels import linear_onednn, linear_torch
from psaq_kernels.backends import BackendError, choose_backend, interpreting
from psaq_kernels.epilogue import Epilogue
from psaq_kernels.levels import FLOAT_TYPES, PerTensor, PerToken, as_bytes, as_stored
from psaq_kernels.packing import QuantizedWeight
from psaq_kernels.processor import BYTE, SEVEN_BITS, largest_exact_weight

ONEDNN = "onednn"
LEVEL_TYPES = (torch.int8, torch.uint8)

MOST_INPUTS = 2**16 - 1  # beyond, the sum of products of 8-bit integers could leave int32


def quant_linear(
    x: Float[Tensor, "*rows inputs"] | Int8[Tensor, "*rows inputs"] | UInt8[Tensor, "*rows inputs"],
    weight: QuantizedWeight,
    input: PerTensor | PerToken,
    bias: Float[Tensor, "outputs"] | None = None,
    *,
    activation: Literal["gelu"] | None = None,
    output: PerTensor | None = None,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Float[Tensor, "*rows outputs"] | Int8[Tensor, "*rows outputs"] | UInt8[Tensor, "*rows outputs"]:
    """y = activation(x̂·ŵᵀ + bias), where x̂ and ŵ are quantised and multiplied as integers.

    With q the stored levels of x, z the level of zero and W the weight's integers,

        y[m, n] = s_x · s_w[n] · (Σ_k q[m, k] W[n, k] − z Σ_k W[n, k]) + bias[n].

    The sums are exact int32; the rest is float32, rounded once to the output's type, and the same to the last bit
    in "triton" and "torch". The GELU is the exact one, by an error function that differs between them: y is then within
    2⁻²¹ of its argument's magnitude. "onednn" rounds in an order of its own, within 1e-6 of the largest |y|, and keeps
    the weight a second time, in the order that it reads. It is taken only where this processor sums products of bytes
    rightly (`psaq_kernels.processor`). Inference only: no gradient.

    Args:
        x: (..., inputs), float32, float16 or bfloat16, any strides; or int8 levels of ``input``, as
            `layer_norm_quantize` and ``output`` leave them; or these as bytes from 0 to 2^bits − 1.
        weight: integers, scales and column sums, 8 or 4 bits. With scales for groups of inputs, each group's sum is
            multiplied by its own, and these products are added in float32, one after the other.
        input: how x is quantised.
        bias: (outputs,), added in float32.
        activation: "gelu" or None.
        output: quantise y for the next layer and return its levels.
        dtype: of y: float32, float16 or bfloat16; by default x's own. Required where x is levels and y is not. Of
            levels: int8, the default, or uint8, which "onednn" reads and writes as they are.
        backend: "triton", "onednn" (on a CPU, with a PerTensor input), "torch", or None for the best that can run.

    Returns:
        (..., outputs) in ``dtype``.

    Raises:
        TypeError: an argument, which the message names, has an unsupported type or dtype.
        ValueError: the shapes or devices do not fit.
        BackendError: the backend asked for cannot run on x's device, or not with this input.
    """
    _check_types(x, weight, input, output, activation)
    _check_shapes(x, weight, bias)
    result_type = _result_type(x, output, dtype)
    chosen = _choose_backend(backend, x.device, weight, input)
    flat = _levels_for(chosen, x.reshape(-1, weight.inputs), input)
    computed = result_type if output is None else torch.uint8 if chosen == ONEDNN else torch.int8
    bias = None if bias is None else bias.float()
    eager = not torch.compiler.is_compiling() and type(x) is Tensor
    if chosen == ONEDNN and isinstance(input, PerTensor) and eager:  # without an operator's overhead
        y = linear_onednn.quant_linear(flat, weight, input, Epilogue(bias, activation == "gelu", output, computed))
    else:
        grids, gelu = (_encode(input), _encode(output)), activation == "gelu"
        tensors = (flat, weight.values, weight.scale, weight.column_sums, bias)
        y = _quant_linear(*tensors, grids[0], gelu, grids[1], computed, chosen, weight.group)
    if output is not None and computed != result_type:
        y = as_stored(y, output) if computed == torch.uint8 else as_bytes(y, output)
    return y.reshape(*x.shape[:-1], weight.outputs)


def _choose_backend(
    requested: str | None, device: torch.device, weight: QuantizedWeight, input: PerTensor | PerToken
) -> str:
    if requested not in (None, ONEDNN):
        return choose_backend(requested, device)
    obstacle = _onednn_obstacle(device, weight, input)
    if requested is None:
        return choose_backend(None, device) if obstacle or not _sums_exactly(weight, device) else ONEDNN
    if obstacle:
        raise BackendError(f'backend="onednn" cannot run: {obstacle}; use another backend or leave it out')
    return ONEDNN


def _onednn_obstacle(device: torch.device, weight: QuantizedWeight, input: PerTensor | PerToken) -> str | None:
    if weight.group is not None:
        return linear_onednn.NO_GROUPS
    if device.type != "cpu":
        return f"the tensors are on {device.type}, and it computes on a CPU"
    return (
        "its input has one scale for all rows, and PerToken gives each its own" if isinstance(input, PerToken) else None
    )


def _sums_exactly(weight: QuantizedWeight, device: torch.device) -> bool:
    """Whether this processor sums products with a weight of this many bits rightly."""
    return not interpreting(device) and largest_exact_weight() >= (SEVEN_BITS if weight.packed else BYTE)


def _levels_for(backend: str, x: Tensor, input: PerTensor | PerToken) -> Tensor:
    """What a backend reads: oneDNN bytes, the others whatever is no byte."""
    if isinstance(input, PerToken) or (backend != ONEDNN and x.dtype != torch.uint8):
        return x
    if backend != ONEDNN:
        return as_stored(x, input)
    if x.dtype == torch.uint8:
        return x
    return as_bytes(x.contiguous(), input) if x.dtype == torch.int8 else linear_onednn.bytes_of(x, input)


@torch.library.custom_op("psaq_kernels::quant_linear", mutates_args=())
def _quant_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    column_sums: Tensor,
    bias: Tensor | None,
    input: list[float],
    gelu: bool,
    output: list[float],
    dtype: torch.dtype,
    backend: str,
    group: int | None = None,
) -> Tensor:
    weights = QuantizedWeight(weight, weight_scale, column_sums, x.shape[1], trusted=True, group=group)
    run = _MODULES.get(backend) or importlib.import_module("psaq_kernels.linear_triton")
    epilogue = Epilogue(bias, gelu, _decode_static(output) if output else None, dtype)
    return run.quant_linear(x, weights, _decode(input), epilogue)


_MODULES: dict[str, Any] = {"torch": linear_torch, ONEDNN: linear_onednn}


@_quant_linear.register_fake
def _(x, weight, weight_scale, column_sums, bias, input, gelu, output, dtype, backend, group=None):
    return x.new_empty(x.shape[0], weight.shape[0], dtype=dtype)


def _encode(grid: PerTensor | PerToken | None) -> list[float]:
    """As numbers, which is what an operator's schema can hold."""
    if isinstance(grid, PerTensor):
        return [grid.bits, grid.zero_point, grid.scale]
    return [] if grid is None else [grid.bits]


def _decode(numbers: list[float]) -> PerTensor | PerToken:
    return PerToken(int(numbers[0])) if len(numbers) == 1 else _decode_static(numbers)


def _decode_static(numbers: list[float]) -> PerTensor:
    bits, zero_point, scale = numbers
    return PerTensor(scale, int(zero_point), int(bits))


def _check_types(
    x: Tensor, weight: QuantizedWeight, input: PerTensor | PerToken, output: PerTensor | None, activation: str | None
) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if x.dtype not in (*FLOAT_TYPES, *LEVEL_TYPES):
        raise TypeError(f"x must be float32, float16, bfloat16, int8 or uint8, got {x.dtype}")
    if not isinstance(weight, QuantizedWeight):
        raise TypeError(f"weight must be a QuantizedWeight, got {type(weight).__name__}")
    if not isinstance(input, PerTensor | PerToken):
        raise TypeError(f"input must be PerTensor or PerToken, got {type(input).__name__}")
    if x.dtype in LEVEL_TYPES and isinstance(input, PerToken):
        raise TypeError(f"input must be PerTensor where x is {x.dtype}: its rows bring no scales")
    if not isinstance(output, PerTensor | None):
        raise TypeError(f"output must be PerTensor or None, got {type(output).__name__}")
    if activation not in (None, "gelu"):
        raise ValueError(f'activation must be "gelu" or None, got {activation!r}')


def _check_shapes(x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> None:
    if x.ndim == 0 or x.shape[-1] != weight.inputs:
        raise ValueError(f"x must be (..., {weight.inputs}) for this weight, got {tuple(x.shape)}")
    if weight.inputs > MOST_INPUTS:
        raise ValueError(f"weight has {weight.inputs} inputs; above {MOST_INPUTS} their sum could overflow int32")
    if x.device != weight.values.device:
        raise ValueError(f"weight is on {weight.values.device}, x on {x.device}; move one to the other")
    if bias is None:
        return
    if not isinstance(bias, Tensor) or not bias.is_floating_point():
        found = bias.dtype if isinstance(bias, Tensor) else type(bias).__name__
        raise TypeError(f"bias must be a floating-point tensor, got {found}")
    if bias.shape != (weight.outputs,) or bias.device != x.device:
        raise ValueError(f"bias must be ({weight.outputs},) on {x.device}, got {tuple(bias.shape)} on {bias.device}")


def _result_type(x: Tensor, output: PerTensor | None, dtype: torch.dtype | None) -> torch.dtype:
    if output is not None:
        if dtype not in (None, *LEVEL_TYPES):
            raise TypeError(f"dtype must be int8 or uint8 where output is given, got {dtype}")
        return dtype or torch.int8
    result_type = dtype or x.dtype
    if result_type not in FLOAT_TYPES:
        raise TypeError(f"dtype must be float32, float16 or bfloat16 where x is {x.dtype}, got {dtype}")
    return result_type

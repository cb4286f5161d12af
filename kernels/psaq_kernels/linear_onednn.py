"""The quantised linear layer by oneDNN's products of bytes, where this processor sums them rightly."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int32, UInt8
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from psaq_kernels.backends import BackendError
from psaq_kernels.epilogue import Epilogue
from psaq_kernels.levels import PerTensor
from psaq_kernels.packing import QuantizedWeight
from psaq_kernels.processor import BYTE, largest_exact_weight

BYTE_BITS = 8
NO_GROUPS = "it scales whole output channels, and this weight has a scale for each group of inputs"
SHIFT = 1.5 * 2**23  # added to a float32 it leaves the nearest whole number in the last bits


def quant_linear(
    x: UInt8[Tensor, "rows inputs"], weight: QuantizedWeight, input: PerTensor, epilogue: Epilogue
) -> Float[Tensor, "rows outputs"] | UInt8[Tensor, "rows outputs"]:
    """See `psaq_kernels.quant_linear`; levels come in and go out as they are, from 0 to 2^bits − 1."""
    return prepared_linear(x, _prepared(weight), weight.scale, input, epilogue)


def prepared_linear(
    x: UInt8[Tensor, "rows inputs"],
    weight: "Prepared",
    scale: Float32[Tensor, "outputs"],
    input: PerTensor,
    epilogue: Epilogue,
) -> Float[Tensor, "rows outputs"] | UInt8[Tensor, "rows outputs"]:
    """The same with the weight as oneDNN reads it."""
    if not len(x):
        return x.new_empty(0, len(scale), dtype=epilogue.dtype)
    output = epilogue.output
    # oneDNN's own levels are bytes; where a level has fewer bits, its range is a clamp of ours.
    emits = output is not None and output.bits == BYTE_BITS
    y = torch.ops.onednn.qlinear_pointwise(
        x.contiguous(),
        input.scale,
        input.zero_point,
        weight.values,
        scale,
        weight.zeros,
        epilogue.bias,
        output.scale if emits and output else 1.0,
        output.zero_point if emits and output else 0,
        torch.uint8 if emits else torch.float32 if output else epilogue.dtype,
        "gelu" if epilogue.gelu else "none",
        [],
        "none" if epilogue.gelu else "",
    )
    return y if emits or output is None else _rounded(y.mul_(output.inverse_scale), output)


def runs_in_integers(weight: QuantizedWeight) -> bool:
    """Whether this processor sums the products with these integers rightly, so that they are multiplied as such. oneDNN
    knows of no groups."""
    if weight.group is not None:
        return False
    exact = largest_exact_weight()
    if exact >= BYTE or (exact and weight.packed):
        return True
    lowest, highest = (int(end) for end in weight.values.aminmax()) if exact else (0, 0)
    return bool(exact) and -exact <= lowest and highest <= exact


# The weight, prepared once ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """Integers in the order that oneDNN reads them, and the version of the tensor that they were in."""

    values: Tensor
    zeros: Int32[Tensor, "outputs"]
    version: int


_weights: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""By the integers that they were made of, for as long as these live."""


def _prepared(weight: QuantizedWeight) -> Prepared:
    version = 0 if weight.values.is_inference() else weight.values._version
    known = _weights.get(weight.values)
    if known is None or known.version != version:
        known = _weights[weight.values] = prepare(weight, version)
    return known


def prepare(weight: QuantizedWeight, version: int = 0) -> Prepared:
    if weight.group is not None:
        raise BackendError(f'backend="onednn" cannot run: {NO_GROUPS}; use backend="torch" or leave it out')
    if not runs_in_integers(weight):
        raise BackendError(
            f'backend="onednn" cannot run: this processor sums products of bytes rightly up to a weight of '
            f'{largest_exact_weight()}, and this one has larger ones; use backend="torch" or leave it out'
        )
    packed = torch.ops.onednn.qlinear_prepack(weight.integers(), None)
    return Prepared(packed, torch.zeros(weight.outputs, dtype=torch.int32), version)


# Levels as bytes ----------------------------------------------------------------------------------------------------


def bytes_of(x: Float[Tensor, "*shape"], grid: PerTensor) -> UInt8[Tensor, "*shape"]:
    """The levels of ``x`` from 0 to 2^bits − 1, in few passes over memory. A NaN is the level of zero."""
    return _rounded(x.float() * grid.inverse_scale, grid)


def layer_norm_bytes(
    x: Float[Tensor, "rows channels"],
    weight: Float32[Tensor, "channels"],
    bias: Float32[Tensor, "channels"],
    eps: float,
    grid: PerTensor,
) -> UInt8[Tensor, "rows channels"]:
    """The levels of a LayerNorm whose weight and bias are in units of a level already."""
    return _rounded(F.layer_norm(x.float(), x.shape[-1:], weight, bias, eps), grid)


def _rounded(scaled: Float32[Tensor, "*shape"], grid: PerTensor) -> UInt8[Tensor, "*shape"]:
    """Levels of numbers in units of a level; overwrites them."""
    lowest, highest = -grid.zero_point, 2**grid.bits - 1 - grid.zero_point
    if torch.compiler.is_compiling():  # which makes one loop of it, with the operations around
        return (scaled.round().clamp(lowest, highest) + grid.zero_point).to(torch.uint8)
    # torch converts floats to bytes one by one: read them off the last bits instead.
    shifted = scaled.add_(SHIFT).clamp_(SHIFT + lowest, SHIFT + highest)
    return shifted.view(torch.int32).to(torch.uint8).add_(grid.zero_point)

"""The quantised linear layer where no product of integers is right and fast: levels as whole float32 numbers.

Levels count from the level of zero, and the scales are in the weight, so that a product of float32 numbers is all there
is to compute. It rounds in another order than exact sums do.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor

from psaq_kernels.epilogue import Epilogue
from psaq_kernels.levels import PerTensor
from psaq_kernels.packing import QuantizedWeight


def folded(weight: QuantizedWeight, input: PerTensor) -> Float32[Tensor, "outputs inputs"]:
    """What levels of ``input`` are multiplied with."""
    return weight.integers() * (weight.scales() * input.scale)


def float_linear(
    levels: Float32[Tensor, "*rows inputs"], weight: Float32[Tensor, "outputs inputs"], epilogue: Epilogue
) -> Float[Tensor, "*rows outputs"]:
    """Like `quant_linear`, from levels and a `folded` weight; emits levels of float32, too."""
    y = F.linear(levels, weight, epilogue.bias)
    if epilogue.gelu:  # in place: another tensor of that size would cost as much as the GELU
        y = F.gelu(y) if torch.compiler.is_compiling() else torch.ops.aten.gelu_(y)
    return (
        y.to(epilogue.dtype)
        if epilogue.output is None
        else _whole(y.mul_(epilogue.output.inverse_scale), epilogue.output)
    )


def steps_of(x: Float[Tensor, "*shape"], grid: PerTensor) -> Float32[Tensor, "*shape"]:
    """The levels of ``x``, from that of zero on."""
    return _whole(x.float() * grid.inverse_scale, grid)


def layer_norm_steps(
    x: Float[Tensor, "*rows channels"],
    weight: Float32[Tensor, "channels"],
    bias: Float32[Tensor, "channels"],
    eps: float,
    grid: PerTensor,
) -> Float32[Tensor, "*rows channels"]:
    """The levels of a LayerNorm whose weight and bias are in units of a level already."""
    return _whole(F.layer_norm(x.float(), x.shape[-1:], weight, bias, eps), grid)


def _whole(scaled: Float32[Tensor, "*shape"], grid: PerTensor) -> Float32[Tensor, "*shape"]:
    """Overwrites what it is given."""
    return scaled.round_().clamp_(-grid.zero_point, 2**grid.bits - 1 - grid.zero_point)

"""Weights in groups: a scale for so many inputs of each output channel, exact in half precision."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from psaq.quantization.quantizers.affine import AffineQuantizer

PerChannel = Callable[[Float[Tensor, "out group"], slice], AffineQuantizer]
"""The weights of one group of inputs, and which inputs these are → a quantiser with one scale per output channel."""


def in_groups(weight: Float[Tensor, "out in"], group: int, per_channel: PerChannel) -> AffineQuantizer:
    """The quantiser whose scales ``per_channel`` finds group by group; the last one may be shorter."""
    inputs = weight.shape[1]
    parts = [slice(start, min(start + group, inputs)) for start in range(0, inputs, group)]
    found = [per_channel(weight[:, part], part) for part in parts]
    scale = torch.stack([half_precision(quantizer.scale) for quantizer in found], 1)
    return AffineQuantizer(scale, None, found[0].bits, group)


def half_precision(scale: Float[Tensor, "*scales"]) -> Float[Tensor, "*scales"]:
    """The nearest positive numbers that 16 bits hold."""
    half = torch.finfo(torch.float16)
    return scale.clamp(half.smallest_normal * half.eps, half.max).half().float()

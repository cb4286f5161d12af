"""Linear and convolution layers with points at their input, their output and their weight.

Where both factors are quantised, their product is computed as integer hardware does: whole numbers are multiplied
and summed, then scaled, then the bias is added. In float32 the sums are exact up to 2^24, so that the simulation
and the deployed model agree to the last bit; products of the scaled numbers would differ by their rounding, which
later quantisers amplify to the size of their own noise.
"""

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from psaq.quantization.model.points import WEIGHT, Quantized
from psaq.quantization.quantizers.affine import AffineQuantizer


class QuantLinear(Quantized, nn.Linear):
    """A linear layer between two points, its weight behind a third."""

    points = ("input", WEIGHT, "output")

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        input, weight = self.input, self.weight_quantizer
        if not _are_uniform(input, weight):
            return self.output(F.linear(input(x), weight(self.weight), self.bias))
        sums = F.linear(input.steps(x), weight.steps(self.weight))
        y = sums * (input.scale * weight.scale)
        return self.output((y if self.bias is None else y + self.bias).to(x.dtype))


class QuantConv2d(Quantized, nn.Conv2d):
    """A convolution between two points, its weight behind a third."""

    points = ("input", WEIGHT, "output")

    def forward(self, x: Float[Tensor, "images inputs height width"]) -> Float[Tensor, "images outputs rows columns"]:
        input, weight = self.input, self.weight_quantizer
        if not _are_uniform(input, weight):
            return self.output(self._conv_forward(input(x), weight(self.weight), self.bias))
        sums = self._conv_forward(input.steps(x), weight.steps(self.weight), None)
        y = sums * (input.scale * weight.scale).view(-1, 1, 1)
        return self.output((y if self.bias is None else y + self.bias.view(-1, 1, 1)).to(x.dtype))


def add_to_bias(layer: nn.Linear | nn.Conv2d, offset: Float[Tensor, " out"]) -> None:
    """Add to a layer's output, channel by channel; a layer without a bias gets one."""
    if layer.bias is None:
        layer.bias = nn.Parameter(offset.to(layer.weight), layer.weight.requires_grad)
    else:
        layer.bias.data += offset.to(layer.bias)


def is_patchwise(layer: nn.Conv2d) -> bool:
    """Whether a convolution is a linear layer on patches that do not overlap."""
    plain = layer.groups == 1 and not any(layer.padding) and set(layer.dilation) == {1}
    return plain and layer.stride == layer.kernel_size


def flattened_patches(
    images: Float[Tensor, "images channels height width"], patch: tuple[int, int]
) -> Float[Tensor, "images rows columns inputs"]:
    """What a patchwise convolution with kernels of ``patch`` multiplies its flattened weight with."""
    height, width = (size // side * side for size, side in zip(images.shape[-2:], patch, strict=True))
    ph, pw = patch
    return rearrange(images[..., :height, :width], "b c (h ph) (w pw) -> b h w (c ph pw)", ph=ph, pw=pw)


def _are_uniform(input: nn.Module, weight: nn.Module) -> bool:
    """Whether x̂ and ŵ are whole multiples of one scale each per output."""
    if not isinstance(input, AffineQuantizer) or not isinstance(weight, AffineQuantizer):
        return False
    return not input.per_channel and weight.symmetric

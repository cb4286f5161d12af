"""Linear and convolution layers with points at their input, their output and their weight.

Where both factors are quantised, their product is computed as integer hardware does: whole numbers are multiplied
and summed, then scaled, then the bias is added. In float32 the sums are exact up to 2^24, so that the simulation
and the deployed model agree to the last bit; products of the scaled numbers would differ by their rounding, which
later quantisers amplify to the size of their own noise.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from psaq.models.operations import layer_geometry, layer_operands
from psaq.quantization.model.points import WEIGHT, Point, Quantized
from psaq.quantization.quantizers.affine import AffineQuantizer

PIXELS = "pixels"
"""The child of a convolution that reads pixel values; see `passes.pixels`."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)


out_of_sight = torch._C.DisableTorchFunction
"""A context whose calls of the framework no watched module counts as its own."""


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a linear or a convolution layer, by its own class or one that it derives from."""
    return is_linear(module) or isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED))


def is_linear(layer: nn.Module) -> bool:
    """Whether every output is a product of the last axis with a row of the weight."""
    return isinstance(layer, nn.Linear) or _is_transposed_linear(layer)


def ordinary(layer: nn.Module) -> "type[QuantLayer] | None":
    """The class of a layer that calls the framework as torch's own does; None where it has a way of its own."""
    if type(layer).forward is nn.Linear.forward:
        return QuantLinear
    return QuantConv if any(type(layer).forward is kind.forward for kind in _CONVOLUTIONS) else None


class QuantLayer(Quantized):
    """A layer between two points, its weight behind a third.

    Where a layer calls the framework in a way of its own (weights standardised, images padded), or another module does
    so with its weight, a watched module hands the call to `quantised`.
    """

    points = ("input", WEIGHT, "output")

    weight: Tensor
    bias: Tensor | None

    def rows(self, weight: Float[Tensor, "..."]) -> Float[Tensor, "out ..."]:
        """The weight, or a tensor like it, by output channel: what each output is a product with."""
        if isinstance(self, _TRANSPOSED):
            return rearrange(weight, "(g i) o ... -> (g o) i ...", g=self.groups)
        return weight.T if _is_transposed_linear(self) else weight

    def from_rows(self, rows: Float[Tensor, "out ..."]) -> Float[Tensor, "..."]:
        """The inverse of `rows`."""
        if isinstance(self, _TRANSPOSED):
            return rearrange(rows, "(g o) i ... -> (g i) o ...", g=self.groups)
        return rows.T if _is_transposed_linear(self) else rows

    def quantised(self, function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """The framework's call with this layer's quantised input and weight."""
        x, _, bias = layer_operands(function, args, kwargs)
        bias = self._own_bias(bias)
        if function in (torch.addmm, Tensor.addmm):
            return self._between_points(lambda x, w, b: F.linear(x, w.T, b), x, bias)
        geometry = layer_geometry(function, args, kwargs)
        return self._between_points(lambda x, w, b: function(x, w, b, **geometry), x, bias)

    def _own_bias(self, given: Tensor | None) -> Tensor | None:
        """A bias that the caller brought along, and what quantisation added to the layer's own."""
        if given is None or self.bias is None or given is self.bias:
            return self.bias if given is None else given
        return given + self.bias.to(given.dtype)

    def _between_points(self, product: Callable[..., Tensor], x: Tensor, bias: Tensor | None) -> Tensor:
        input, quantizer = self.input, self.weight_quantizer
        if not _are_uniform(input, quantizer):
            x = input(x)  # before the weight: calibration takes the points in the order in which they are passed
            weight = self.weight if isinstance(quantizer, Point) else self.from_rows(quantizer(self.rows(self.weight)))
            y = product(x.to(weight.dtype), weight, None if bias is None else bias.to(weight.dtype))
            return self.output(y.to(self.weight.dtype))
        if quantizer.group is not None:
            y = self._summed_by_groups(product, x) * input.scale
        else:
            weight = self.from_rows(quantizer.steps(self.rows(self.weight)))
            sums = product(input.steps(x).to(weight.dtype), weight, None)
            y = sums * self._by_channel(input.scale * quantizer.scale)
        return self.output((y if bias is None else y + self._by_channel(bias)).to(self.weight.dtype))

    def _summed_by_groups(self, product: Callable[..., Tensor], x: Tensor) -> Tensor:
        """The sums of whole numbers, each group's times its scale, one added after the other."""
        quantizer = self.weight_quantizer
        rows = quantizer.steps(self.rows(self.weight))
        levels = self.input.steps(x).to(rows.dtype)
        parts = zip(levels.split(quantizer.group, -1), rows.split(quantizer.group, 1), quantizer.scale.T, strict=True)
        return sum_in_order(product(part, self.from_rows(weights), None) * scale for part, weights, scale in parts)

    def _by_channel(self, numbers: Float[Tensor, " out"]) -> Tensor:
        spatial = self.weight.ndim - 2
        return numbers.view(-1, *[1] * spatial) if spatial else numbers


class QuantLinear(QuantLayer, nn.Linear):  # type: ignore[misc]
    """An ordinary linear layer."""

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        with out_of_sight():
            return self._between_points(F.linear, x, self.bias)


class QuantConv(QuantLayer):
    """An ordinary convolution; one that embeds patches may undo the images' normalisation first."""

    def forward(self, x: Float[Tensor, "images inputs ..."]) -> Float[Tensor, "images outputs ..."]:
        with out_of_sight():
            x = self.pixels(x) if PIXELS in self._modules else x
            return self._between_points(self._conv_forward, x, self.bias)


def _is_transposed_linear(module: nn.Module) -> bool:
    """transformers' Conv1D, a linear layer with its weight the other way round."""
    return type(module).__name__ == "Conv1D" and getattr(module, "nf", None) is not None


def add_to_bias(layer: Any, offset: Float[Tensor, " out"]) -> None:
    """Add to a layer's output, channel by channel; a layer without a bias gets one."""
    if layer.bias is None:
        layer.bias = nn.Parameter(offset.to(layer.weight), layer.weight.requires_grad)
    else:
        layer.bias.data += offset.to(layer.bias)


def sum_in_order(terms: Iterable[Tensor]) -> Tensor:
    """The first and the second, then the third, and so on: sums of floats depend on it."""
    return functools.reduce(torch.add, terms)


def is_patchwise(layer: nn.Module) -> bool:
    """Whether a convolution is a linear layer on patches that do not overlap."""
    if not isinstance(layer, nn.Conv2d) or isinstance(layer.padding, str):
        return False
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
    """Whether x̂ is whole multiples of one scale, and ŵ of one per output or per output and group of inputs."""
    if not isinstance(input, AffineQuantizer) or not isinstance(weight, AffineQuantizer):
        return False
    return not input.per_channel and weight.symmetric

"""Linear and convolution layers with points at their input, their output and their weight."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from psaq.quantization.points import WEIGHT, Quantized


class QuantLinear(Quantized, nn.Linear):
    """A linear layer between two points, its weight behind a third."""

    points = ("input", WEIGHT, "output")

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        weight = self.weight_quantizer(self.weight)
        return self.output(F.linear(self.input(x), weight, self.bias))


class QuantConv2d(Quantized, nn.Conv2d):
    """A convolution between two points, its weight behind a third."""

    points = ("input", WEIGHT, "output")

    def forward(self, x: Float[Tensor, "images inputs height width"]) -> Float[Tensor, "images outputs rows columns"]:
        weight = self.weight_quantizer(self.weight)
        return self.output(self._conv_forward(self.input(x), weight, self.bias))

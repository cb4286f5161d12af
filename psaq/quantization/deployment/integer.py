"""Layers that compute in integers: what the fake-quantised ones become when a model is deployed."""

from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int8
from torch import Tensor, nn

from psaq.quantization.model.layers import flattened_patches, out_of_sight
from psaq.quantization.quantizers.keeps_types import KeepsTypes
from psaq_kernels import PerTensor, QuantizedWeight, layer_norm_quantize, quant_linear


class IntegerLinear(KeepsTypes):
    """A linear layer on 8-bit activations and 8- or 4-bit weights, with what follows it in the same kernel.

    Args:
        weight: its integers.
        bias: float, or None.
        input: how its input is quantised, unless that comes as int8 levels already.
        dtype: of its output.
    """

    values: Tensor
    scale: Tensor
    column_sums: Tensor
    bias: Tensor | None

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None, input: PerTensor, dtype: torch.dtype):
        super().__init__()
        self.inputs = weight.inputs
        self.input = input
        self.dtype = dtype
        self.activation: Literal["gelu"] | None = None
        self.emitted: PerTensor | None = None
        self.register_buffer("values", weight.values)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("column_sums", weight.column_sums)
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    @property
    def weight(self) -> Tensor:
        """Nothing but a type and a device, which models ask of a layer's weight."""
        return self.values.new_empty(0, dtype=self.dtype)

    @property
    def integers(self) -> QuantizedWeight:
        """The weight."""
        return QuantizedWeight(self.values, self.scale, self.column_sums, self.inputs, trusted=True)

    def feed_through_gelu(self, following: "IntegerLinear") -> None:
        """Apply a GELU and emit the levels that ``following`` reads."""
        self.activation = "gelu"
        self.emitted = following.input

    def forward(
        self, x: Float[Tensor, "... inputs"] | Int8[Tensor, "... inputs"]
    ) -> Float[Tensor, "... outputs"] | Int8[Tensor, "... outputs"]:
        with out_of_sight():
            return quant_linear(
                x,
                self.integers,
                self.input,
                self.bias,
                activation=self.activation,
                output=self.emitted,
                dtype=None if self.emitted else self.dtype,
            )

    def extra_repr(self) -> str:
        bits = 4 if self.integers.packed else 8
        then = f", then {self.activation}" if self.activation else ""
        emitted = "int8" if self.emitted else str(self.dtype).removeprefix("torch.")
        return f"{self.inputs} → {self.integers.outputs}, int{bits} weights{then}, emits {emitted}"


class IntegerPatchEmbedding(IntegerLinear):
    """The patch embedding's convolution, whose stride is its kernel, as a linear layer on flattened patches."""

    def __init__(
        self,
        weight: QuantizedWeight,
        bias: Tensor | None,
        input: PerTensor,
        dtype: torch.dtype,
        patch: tuple[int, int],
    ):
        super().__init__(weight, bias, input, dtype)
        self.patch = patch

    def forward(self, x: Float[Tensor, "images channels height width"]) -> Float[Tensor, "images outputs rows columns"]:
        emitted = rearrange(super().forward(flattened_patches(x, self.patch)), "b h w d -> b d h w")
        # Among convolutions another arrangement in memory would make the next ones sum in another order.
        return emitted.contiguous() if self.patch == (1, 1) else emitted


class IntegerLayerNorm(KeepsTypes):
    """A LayerNorm that emits the levels that the linear layer behind it reads."""

    weight: Tensor
    bias: Tensor

    def __init__(self, norm: nn.LayerNorm, output: PerTensor):
        super().__init__()
        self.eps = norm.eps
        self.output = output
        self.register_buffer("weight", norm.weight.detach().float())
        self.register_buffer("bias", norm.bias.detach().float())

    def forward(self, x: Float[Tensor, "... channels"]) -> Int8[Tensor, "... channels"]:
        with out_of_sight():
            return layer_norm_quantize(x, self.weight, self.bias, self.output, self.eps)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}, emits int8"

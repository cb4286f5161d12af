"""Layers that compute in integers: what the fake-quantised ones become when a model is deployed."""

from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float, Float32, Int8, UInt8
from torch import Tensor, nn

from psaq.quantization.model.layers import flattened_patches, out_of_sight
from psaq.quantization.quantizers.keeps_types import KeepsTypes
from psaq_kernels import PerTensor, QuantizedWeight, layer_norm_quantize, quant_linear
from psaq_kernels.epilogue import Epilogue
from psaq_kernels.linear_float import float_linear, folded, layer_norm_steps, steps_of
from psaq_kernels.linear_onednn import Prepared, bytes_of, layer_norm_bytes, prepare, prepared_linear
from psaq_kernels.linear_onednn import quant_linear as onednn_linear

ONEDNN, FLOATS = "onednn", "floats"
"""Backends of the layers here beside those of `quant_linear`: its own called without its checks, and products of the
integers as float32 numbers."""

LEVEL_TYPES = {ONEDNN: torch.uint8, FLOATS: torch.float32}
"""In which a layer reads levels; others read int8."""

Levels = Int8[Tensor, "..."] | UInt8[Tensor, "..."] | Float32[Tensor, "..."]


class IntegerLinear(KeepsTypes):
    """A linear layer on 8-bit activations and 8- or 4-bit weights, with what follows it in the same kernel.

    Args:
        weight: its integers.
        bias: float, or None.
        input: how its input is quantised, unless that comes as levels already.
        dtype: of its output.
        backend: of `quant_linear`, or "floats".
    """

    values: Tensor
    scale: Tensor
    column_sums: Tensor
    bias: Tensor | None
    folded: Tensor | None

    def __init__(
        self,
        weight: QuantizedWeight,
        bias: Tensor | None,
        input: PerTensor,
        dtype: torch.dtype,
        backend: str | None = None,
    ):
        super().__init__()
        self.backend = backend
        self.inputs, self.group = weight.inputs, weight.group
        self.input = input
        self.dtype = dtype
        self.activation: Literal["gelu"] | None = None
        self.emitted: PerTensor | None = None
        self.emitted_type = dtype
        self.reads_levels = False  # from the layer before it
        self.prepared: Prepared | None = None
        self.register_buffer("values", weight.values)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("column_sums", weight.column_sums)
        self.register_buffer("bias", None if bias is None else bias.detach().float())
        self.register_buffer("folded", folded(weight, input) if backend == FLOATS else None, persistent=False)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        if self.folded is not None:
            self.folded.copy_(folded(self.integers, self.input))

    @property
    def weight(self) -> Tensor:
        """Nothing but a type and a device, which models ask of a layer's weight."""
        return self.values.new_empty(0, dtype=self.dtype)

    @property
    def integers(self) -> QuantizedWeight:
        """The weight."""
        return QuantizedWeight(self.values, self.scale, self.column_sums, self.inputs, trusted=True, group=self.group)

    @property
    def level_type(self) -> torch.dtype:
        """Of the levels that it reads."""
        return LEVEL_TYPES.get(self.backend or "", torch.int8)

    def feed_through_gelu(self, following: "IntegerLinear") -> None:
        """Apply a GELU and emit the levels that ``following`` reads."""
        self.activation = "gelu"
        self.emitted, self.emitted_type = following.input, following.level_type
        following.reads_levels = True

    def freeze(self) -> None:
        """Keep the weight as oneDNN reads it, for a compiler that takes weights for constants."""
        if self.backend == ONEDNN:
            self.prepared = prepare(self.integers)

    def levels(self, x: Float[Tensor, "..."]) -> Tensor:
        """How it reads numbers: as levels, unless `quant_linear` quantises them."""
        if self.backend == FLOATS:
            return steps_of(x, self.input)
        return bytes_of(x, self.input) if self.backend == ONEDNN else x

    def forward(self, x: Float[Tensor, "... inputs"] | Levels) -> Float[Tensor, "... outputs"] | Levels:
        with out_of_sight():
            x = x if self.reads_levels else self.levels(x)
            if self.backend == FLOATS:
                assert self.folded is not None
                return float_linear(x, self.folded, self._epilogue())
            if self.prepared is not None or (self.backend == ONEDNN and not torch.compiler.is_compiling()):
                return self._by_onednn(x)
            return quant_linear(
                x,
                self.integers,
                self.input,
                self.bias,
                activation=self.activation,
                output=self.emitted,
                dtype=self.emitted_type,
                backend=self.backend,
            )

    def _by_onednn(self, levels: UInt8[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"] | Levels:
        """At small batches the checks of `quant_linear` would take as long as the product."""
        rows = levels.reshape(-1, self.inputs)
        if self.prepared is None:
            y = onednn_linear(rows, self.integers, self.input, self._epilogue())
        else:
            y = prepared_linear(rows, self.prepared, self.scale, self.input, self._epilogue())
        return y.view(*levels.shape[:-1], y.shape[-1])

    def _epilogue(self) -> Epilogue:
        return Epilogue(self.bias, self.activation == "gelu", self.emitted, self.emitted_type)

    def extra_repr(self) -> str:
        bits = 4 if self.integers.packed else 8
        groups = "" if self.group is None else f" in groups of {self.group}"
        then = f", then {self.activation}" if self.activation else ""
        emitted = str(self.emitted_type).removeprefix("torch.")
        floats = ", multiplied in float32" if self.backend == FLOATS else ""
        return f"{self.inputs} → {self.integers.outputs}, int{bits} weights{groups}{floats}{then}, emits {emitted}"


class IntegerPatchEmbedding(IntegerLinear):
    """The patch embedding's convolution, whose stride is its kernel, as a linear layer on flattened patches."""

    def __init__(
        self,
        weight: QuantizedWeight,
        bias: Tensor | None,
        input: PerTensor,
        dtype: torch.dtype,
        patch: tuple[int, int],
        backend: str | None = None,
    ):
        super().__init__(weight, bias, input, dtype, backend)
        self.patch = patch
        self.reads_levels = True

    def forward(self, x: Float[Tensor, "images channels height width"]) -> Float[Tensor, "images outputs rows columns"]:
        with out_of_sight():  # bytes are rearranged in a quarter of the time
            x = self.levels(x)
        emitted = rearrange(super().forward(flattened_patches(x, self.patch)), "b h w d -> b d h w")
        # Among convolutions another arrangement in memory would make the next ones sum in another order.
        return emitted.contiguous() if self.patch == (1, 1) else emitted


class IntegerLayerNorm(KeepsTypes):
    """A LayerNorm that emits the levels that the linear layers behind it read.

    Weight and bias are in units of a level, except where it emits int8.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, norm: nn.LayerNorm, output: PerTensor, level_type: torch.dtype = torch.int8):
        super().__init__()
        self.eps = norm.eps
        self.output = output
        self.level_type = level_type
        unit = 1.0 if level_type == torch.int8 else output.inverse_scale
        self.register_buffer("weight", norm.weight.detach().float() * unit)
        self.register_buffer("bias", norm.bias.detach().float() * unit)

    def forward(self, x: Float[Tensor, "... channels"]) -> Levels:
        with out_of_sight():
            if self.level_type == torch.int8:
                return layer_norm_quantize(x, self.weight, self.bias, self.output, self.eps)
            levels = layer_norm_bytes if self.level_type == torch.uint8 else layer_norm_steps
            return levels(x, self.weight, self.bias, self.eps, self.output)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}, emits {str(self.level_type).removeprefix('torch.')}"

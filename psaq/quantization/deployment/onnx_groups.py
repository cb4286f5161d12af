"""onnxruntime's product with weights of 4 bits in groups, as an operator of a traced graph."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int8, UInt8
from torch import Tensor, nn

from psaq.quantization.quantizers.affine import AffineQuantizer
from psaq_kernels.packing import NIBBLE_BITS

RUNTIME_DOMAIN = "com.microsoft"
_ZERO = 8  # the nibble that stands for 0


class OnnxGroups(nn.Module):
    """Stored nibbles, and the product with what they stand for."""

    nibbles: Tensor
    scale: Tensor

    def __init__(self, integers: Int8[Tensor, "outputs inputs"], quantizer: AffineQuantizer):
        super().__init__()
        assert quantizer.group is not None
        self.inputs, self.group = integers.shape[1], quantizer.group
        self.register_buffer("nibbles", _packed(integers, self.group))
        self.register_buffer("scale", quantizer.scale.flatten())

    @property
    def dtype(self) -> torch.dtype:
        """Of what it stands for, which models ask of a layer's weight."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        """Likewise."""
        return torch.device("cpu")

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        return _Product.apply(x, self.nibbles, self.scale, self.inputs, self.group)


def has_groups(model: nn.Module) -> bool:
    """Whether a graph of the model needs the runtime's own operators."""
    return any(isinstance(module, OnnxGroups) for module in model.modules())


class _Product(torch.autograd.Function):
    """In the graph, MatMulNBits."""

    @staticmethod
    def forward(_: Any, x: Tensor, nibbles: Tensor, scale: Tensor, inputs: int, group: int) -> Tensor:
        return F.linear(x, _real(nibbles, scale, inputs, group))

    @staticmethod
    def symbolic(graph: Any, x: Any, nibbles: Any, scale: Any, inputs: int, group: int) -> Any:
        outputs = nibbles.type().sizes()[0]
        sizes = {"K_i": inputs, "N_i": outputs, "bits_i": NIBBLE_BITS, "block_size_i": group}
        y = graph.op(f"{RUNTIME_DOMAIN}::MatMulNBits", x, nibbles, scale, **sizes)
        leading = x.type().sizes()
        return y.setType(x.type() if leading is None else x.type().with_sizes([*leading[:-1], outputs]))


def _packed(integers: Int8[Tensor, "outputs inputs"], group: int) -> UInt8[Tensor, "outputs groups bytes"]:
    """Group by group, the last one filled up with zeros; two neighbours to a byte, the first in the low half."""
    whole = F.pad(integers, (0, -integers.shape[1] % group)).add(_ZERO).to(torch.uint8)
    low, high = whole.view(len(whole), -1, group // 2, 2).unbind(-1)
    return low | (high << NIBBLE_BITS)


def _real(
    nibbles: UInt8[Tensor, "outputs groups bytes"], scale: Float32[Tensor, " scales"], inputs: int, group: int
) -> Float32[Tensor, "outputs inputs"]:
    steps = torch.stack([nibbles & 0x0F, nibbles >> NIBBLE_BITS], -1).flatten(1).float() - _ZERO
    return (steps * scale.view(len(steps), -1).repeat_interleave(group, 1))[:, :inputs]

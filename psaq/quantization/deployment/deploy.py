"""From a fake-quantised model to one that runs in integers."""

import copy
import re
from collections import Counter, OrderedDict
from collections.abc import Iterable

import torch
from jaxtyping import Float
from timm.layers import Mlp
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.quantization.deployment.integer import IntegerLayerNorm, IntegerLinear, IntegerPatchEmbedding
from psaq.quantization.model.layers import QuantConv2d, QuantLinear, is_patchwise
from psaq.quantization.model.neighbours import fills_its_windows, normalised_inputs
from psaq.quantization.model.points import WEIGHT, Point, live_points
from psaq.quantization.quantizers.affine import AffineQuantizer
from psaq_kernels import PerTensor, QuantizedWeight

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
INTEGER = "integer"
"""What the layer in integers is called where a fake quantisation of its output follows it."""


def deploy(qmodel: nn.Module, dtype: torch.dtype | None = None) -> "IntegerModel":
    """The same model with its linear layers and its patch embedding in integers.

    Activations flow as 8-bit levels from LayerNorm to linear layer and from fc1 through GELU to fc2; attention,
    residual sums and whatever no kernel covers run in ``dtype``. Quantisation points there stay fake-quantised:
    ``repr`` lists them. With ``Recipe(scope="linear")`` there are none, and attention runs fused.

    Args:
        qmodel: what `psaq.quantize` or `psaq.load` returned, on the device where it shall run; left untouched.
        dtype: float32, float16 or bfloat16; by default bfloat16 on a GPU and float32 elsewhere.

    Returns:
        A module for inference. In float32 it differs from ``qmodel`` by the rounding of its sums alone; what to
        compare it with in half precision is `psaq.simulate`.

    Raises:
        PsaqError: not a quantised model, an unsupported dtype, or no layer that integers can compute.
    """
    if getattr(qmodel, "psaq_recipe", None) is None:
        raise PsaqError(f"{type(qmodel).__name__}: is not quantised; deploy what psaq.quantize or psaq.load returned")
    dtype = dtype or _usual_dtype(qmodel)
    if dtype not in DTYPES:
        raise PsaqError(f"dtype {dtype}: deploy computes in float32, float16 or bfloat16")
    model = copy.deepcopy(qmodel).requires_grad_(False).eval()
    simulated = live_points(model).keys()
    converted = _swap_layers(model, dtype)
    if not converted:
        raise PsaqError(f"{qmodel.psaq_recipe}: leaves no linear layer that integers can compute")
    _join_neighbours(model)
    covered = {f"{name}.{point}" for name in converted for point in ("input", WEIGHT)}
    return IntegerModel(model.to(dtype), dtype, [name for name in simulated if name not in covered])


class IntegerModel(nn.Module):
    """A deployed model: images in, logits out.

    Attributes:
        model: the timm model with its layers swapped.
        dtype: in which it computes what is not in integers.
        simulated: the quantisation points that no kernel covers; they stay fake-quantised.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, simulated: list[str]):
        super().__init__()
        self.model = model
        self.dtype = dtype
        self.simulated = simulated

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images classes"]:
        return self.model(images)

    def extra_repr(self) -> str:
        layers = Counter(type(module).__name__ for module in self.modules() if isinstance(module, _INTEGER))
        counts = ", ".join(f"{count} {kind}" for kind, count in layers.items())
        left = ", ".join(_summarised(self.simulated)) or "none"
        return f"{self.model.psaq_recipe} in {self.dtype}\nin integers: {counts}\nfake-quantised: {left}"


_INTEGER = (IntegerLinear, IntegerLayerNorm)


def _usual_dtype(model: nn.Module) -> torch.dtype:
    return torch.bfloat16 if next(model.parameters()).device.type == "cuda" else torch.float32


def _summarised(points: Iterable[str]) -> list[str]:
    """Points that differ only in numbers, once, with their count."""
    counts = Counter(re.sub(r"\b\d+\b", "*", point) for point in points)
    return [f"{pattern} ({count})" if count > 1 else pattern for pattern, count in counts.items()]


# Layer by layer ---------------------------------------------------------------------------------------------


def _swap_layers(model: nn.Module, dtype: torch.dtype) -> list[str]:
    """Put integer layers in place; returns the names of those that could be."""
    integer = {name: layer for name, module in model.named_modules() if (layer := _integer_layer(module, dtype))}
    for name, layer in integer.items():
        model.set_submodule(name, layer)
    return list(integer)


def _integer_layer(layer: nn.Module, dtype: torch.dtype) -> nn.Module | None:
    """The layer in integers, followed by the fake quantisation of its output where there is one."""
    if not isinstance(layer, QuantLinear | QuantConv2d) or (isinstance(layer, nn.Conv2d) and not is_patchwise(layer)):
        return None
    weight, input = _integer_weight(layer), _per_tensor(layer.input)
    if weight is None or input is None:
        return None
    if isinstance(layer, QuantConv2d):
        patch = (layer.kernel_size[0], layer.kernel_size[1])
        return _with_output(IntegerPatchEmbedding(weight, layer.bias, input, dtype, patch), layer.output)
    return _with_output(IntegerLinear(weight, layer.bias, input, dtype), layer.output)


def _with_output(layer: IntegerLinear, output: nn.Module) -> nn.Module:
    return layer if isinstance(output, Point) else nn.Sequential(OrderedDict({INTEGER: layer, "output": output}))


def _integer_weight(layer: QuantLinear | QuantConv2d) -> QuantizedWeight | None:
    quantizer = getattr(layer, WEIGHT)
    if not isinstance(quantizer, AffineQuantizer) or not quantizer.symmetric:
        return None
    integers = quantizer.integers(layer.weight).flatten(1)
    return QuantizedWeight.from_integers(integers, quantizer.scale.expand(len(integers)), quantizer.bits)


def _per_tensor(point: nn.Module) -> PerTensor | None:
    """The point's quantisation as the kernels know it; None where it is of another kind."""
    if not isinstance(point, AffineQuantizer) or point.per_channel:
        return None
    return PerTensor(point.scale.item(), int(point.zero_point.item()) - point.lowest, point.bits)


# Neighbour to neighbour -------------------------------------------------------------------------------------


def _join_neighbours(model: nn.Module) -> None:
    """Let LayerNorm, fc1 and GELU hand levels to the layer that would quantise what they emit."""
    for module in model.modules():
        if isinstance(module, Mlp):
            _join_mlp(module)
    for parent, norm, linear in list(normalised_inputs(model)):
        padded = isinstance(parent, SwinTransformerBlock) and norm == "norm1" and not fills_its_windows(parent)
        if not padded:
            _join_norm(parent, norm, linear)


def _join_mlp(mlp: Mlp) -> None:
    exact_gelu = type(mlp.act) is nn.GELU and mlp.act.approximate == "none"
    both_plain = type(mlp.fc1) is IntegerLinear and type(mlp.fc2) is IntegerLinear
    if exact_gelu and both_plain and isinstance(mlp.norm, nn.Identity):
        mlp.fc1.feed_through_gelu(mlp.fc2)
        mlp.act = nn.Identity()


def _join_norm(parent: nn.Module, name: str, linear: nn.Module | None) -> None:
    norm = getattr(parent, name)
    first = linear[0] if isinstance(linear, nn.Sequential) else linear
    if isinstance(norm, nn.LayerNorm) and norm.elementwise_affine and isinstance(first, IntegerLinear):
        setattr(parent, name, IntegerLayerNorm(norm, first.input))

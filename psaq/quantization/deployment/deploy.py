"""From a fake-quantised model to one that runs in integers."""

import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.models.calling import takes
from psaq.models.copying import copied
from psaq.models.heads import classes_or_none
from psaq.models.place import device_of
from psaq.models.wrappers import innermost
from psaq.quantization.deployment.attention import WrittenOut, in_chunks
from psaq.quantization.deployment.integer import (
    FLOATS,
    ONEDNN,
    IntegerLayerNorm,
    IntegerLinear,
    IntegerPatchEmbedding,
)
from psaq.quantization.deployment.unwatched import stop_watching
from psaq.quantization.model.conversion import lent_layers, structure
from psaq.quantization.model.layers import PIXELS, QuantConv, QuantLayer, QuantLinear, is_patchwise
from psaq.quantization.model.points import WEIGHT, Point, live_points
from psaq.quantization.quantizers.affine import AffineQuantizer
from psaq_kernels import PerTensor, QuantizedWeight
from psaq_kernels.linear_onednn import runs_in_integers
from psaq_kernels.processor import has_bfloat16_vectors

Backend = Literal["exact", "onednn"]
"""How integers are multiplied: with the simulation's very bits, or by oneDNN on a CPU."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
INTEGER = "integer"
"""What the layer in integers is called where a fake quantisation of its output follows it."""


def deploy(qmodel: nn.Module, dtype: torch.dtype | None = None, backend: Backend | None = None) -> "IntegerModel":
    """The same model with its linear layers and its patch embedding in integers.

    Activations flow as 8-bit levels from LayerNorm to linear layer and from fc1 through GELU to fc2; attention,
    residual sums and whatever no kernel covers run in ``dtype``. Quantisation points there stay fake-quantised:
    ``repr`` lists them. With ``Recipe(scope="linear")`` there are none, and attention runs fused.

    Args:
        qmodel: what `psaq.quantize` or `psaq.load` returned, on the device where it shall run; left untouched.
        dtype: float32, float16 or bfloat16; by default bfloat16 on a GPU and float32 elsewhere.
        backend: "onednn", the default on a CPU, is fast, and rounds where oneDNN does; weights whose products with
            bytes this processor would sum wrongly, and weights in groups, for which oneDNN has no product, are
            multiplied as float32 numbers. With "exact" the model computes,
            in float32, the bits of ``qmodel``, more slowly than a float model; on a GPU it is the only one.

    Returns:
        A module for inference. In float32 it differs from ``qmodel`` by the rounding of its sums alone, which makes
        some levels differ by one, and by these, block after block, 1 to 3 % of the classes of a DeiT-Tiny; what to
        compare it with in half precision is `psaq.simulate`.

    Raises:
        PsaqError: not a quantised model, an unsupported dtype or backend, or no layer that integers can compute.
    """
    qmodel = innermost(qmodel)
    if getattr(qmodel, "psaq_recipe", None) is None:
        raise PsaqError(f"{type(qmodel).__name__}: is not quantised; deploy what psaq.quantize or psaq.load returned")
    dtype = dtype or _usual_dtype(qmodel)
    if dtype not in DTYPES:
        raise PsaqError(f"dtype {dtype}: deploy computes in float32, float16 or bfloat16")
    product = _product(backend, device_of(qmodel))
    model = copied(qmodel).requires_grad_(False).eval()
    points = live_points(model).keys()
    converted = _swap_layers(model, dtype, product)
    if not converted:
        raise PsaqError(f"{qmodel.psaq_recipe}: leaves no linear layer that integers can compute")
    _join_neighbours(model)
    stop_watching(model)
    covered = {f"{name}.{point}" for name in converted for point in ("input", WEIGHT)}
    simulated = [name for name in points if name not in covered]
    in_products = product == ONEDNN and dtype == torch.bfloat16 and has_bfloat16_vectors()
    attention = WrittenOut(in_chunks) if in_products else nullcontext()
    return IntegerModel(model.to(dtype), dtype, simulated, classes_or_none(qmodel), attention)


def _product(backend: Backend | None, device: torch.device) -> str | None:
    """The backend of `quant_linear`; None for its own choice."""
    if backend not in (None, "exact", ONEDNN):
        raise PsaqError(f'backend {backend!r}: deploy knows "onednn" and "exact"')
    if device.type == "cpu":
        return "torch" if backend == "exact" else ONEDNN
    if backend == ONEDNN:
        raise PsaqError(f'backend "onednn" computes on a CPU, and the model is on {device.type}; leave it out')
    return None


class IntegerModel(nn.Module):
    """A deployed model: images in, its own answer out.

    Attributes:
        model: the model with its layers swapped.
        dtype: in which it computes what is not in integers.
        simulated: the quantisation points that no kernel covers; they stay fake-quantised.
        classes: that the model tells apart; None where it tells none.
        attention: what is entered while it is compiled, so that attention is computed the fastest way.
    """

    def __init__(
        self,
        model: nn.Module,
        dtype: torch.dtype,
        simulated: list[str],
        classes: int | None,
        attention: AbstractContextManager[Any],
    ):
        super().__init__()
        self.model = model
        self.dtype = dtype
        self.simulated = simulated
        self.attention = attention
        self.psaq_takes = takes(model)
        self.psaq_classes = classes
        if (task := getattr(model, "psaq_task", None)) is not None:
            self.psaq_task = task

    @property
    def psaq_body(self) -> nn.Module:
        """Where the modules bear the names that they have in the quantised model."""
        return self.model

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # A mode costs a call of Python for each of torch's; where Python runs, small models would lose by it.
        with self.attention if torch.compiler.is_compiling() else nullcontext():
            return self.model(*args, **kwargs)

    def extra_repr(self) -> str:
        layers = Counter(type(module).__name__ for module in self.modules() if isinstance(module, _INTEGER))
        counts = ", ".join(f"{count} {kind}" for kind, count in layers.items())
        floats = Counter(
            module.integers.group is not None
            for module in self.modules()
            if isinstance(module, IntegerLinear) and module.backend == FLOATS
        )
        counts += "".join(
            f", {floats[of]} of them multiplied in float32, since {why}" for of, why in _WHY if floats[of]
        )
        left = ", ".join(_summarised(self.simulated)) or "none"
        return f"{self.model.psaq_recipe} in {self.dtype}\nin integers: {counts}\nfake-quantised: {left}"


class IntegerStages(nn.Sequential):
    """A layer in integers between fake quantisations."""

    @property
    def weight(self) -> Tensor:
        """The layer's."""
        return self.get_submodule(INTEGER).weight  # type: ignore[return-value]


_INTEGER = (IntegerLinear, IntegerLayerNorm)
_WHY = ((False, "this processor sums bytes wrongly"), (True, "oneDNN scales whole output channels, not groups"))
"""Whether a weight has scales of groups, and what keeps oneDNN from multiplying it."""


def _usual_dtype(model: nn.Module) -> torch.dtype:
    return torch.bfloat16 if device_of(model).type == "cuda" else torch.float32


def _summarised(points: Iterable[str]) -> list[str]:
    """Points that differ only in numbers, once, with their count."""
    counts = Counter(re.sub(r"\b\d+\b", "*", point) for point in points)
    return [f"{pattern} ({count})" if count > 1 else pattern for pattern, count in counts.items()]


# Layer by layer ---------------------------------------------------------------------------------------------


def _swap_layers(model: nn.Module, dtype: torch.dtype, backend: str | None) -> list[str]:
    """Put integer layers in place; returns the names of those that could be."""
    lent = lent_layers(model)
    candidates = {name: module for name, module in model.named_modules() if name not in lent}
    integer = {name: layer for name, module in candidates.items() if (layer := _integer_layer(module, dtype, backend))}
    for name, layer in integer.items():
        keep_settings(candidates[name], layer)
        model.set_submodule(name, layer)
    return list(integer)


def _integer_layer(layer: nn.Module, dtype: torch.dtype, backend: str | None) -> nn.Module | None:
    """The layer in integers, behind what undoes the images' normalisation and before the fake quantisation of its
    output, where there is one."""
    if not isinstance(layer, QuantLinear | QuantConv) or (isinstance(layer, QuantConv) and not is_patchwise(layer)):
        return None
    weight, input = _integer_weight(layer), _per_tensor(layer.input)
    if weight is None or input is None:
        return None
    backend = FLOATS if backend == ONEDNN and not runs_in_integers(weight) else backend
    if isinstance(layer, nn.Conv2d):
        patch = (layer.kernel_size[0], layer.kernel_size[1])
        return _between(layer, IntegerPatchEmbedding(weight, layer.bias, input, dtype, patch, backend))
    return _between(layer, IntegerLinear(weight, layer.bias, input, dtype, backend))


def _between(layer: QuantLayer, integer: IntegerLinear) -> nn.Module:
    parts = {PIXELS: layer._modules.get(PIXELS), INTEGER: integer, "output": layer.output}
    stages = OrderedDict(
        (name, part) for name, part in parts.items() if part is not None and not isinstance(part, Point)
    )
    return integer if len(stages) == 1 else IntegerStages(stages)


def keep_settings(layer: nn.Module, integer: nn.Module) -> None:
    """What a model may ask of its layer: sizes, strides, paddings."""
    for name, value in vars(layer).items():
        if isinstance(value, int | str | tuple) and not name.startswith(("_", "psaq_")) and not hasattr(integer, name):
            setattr(integer, name, value)


def _integer_weight(layer: QuantLayer) -> QuantizedWeight | None:
    quantizer = getattr(layer, WEIGHT)
    if not isinstance(quantizer, AffineQuantizer) or not quantizer.symmetric:
        return None
    integers = quantizer.integers(layer.weight).flatten(1)
    scale = quantizer.scale if quantizer.scale.ndim else quantizer.scale.expand(len(integers))
    return QuantizedWeight.from_integers(integers, scale, quantizer.bits, quantizer.group)


def _per_tensor(point: nn.Module) -> PerTensor | None:
    """The point's quantisation as the kernels know it; None where it is of another kind."""
    if not isinstance(point, AffineQuantizer) or point.per_channel:
        return None
    return PerTensor(point.scale.item(), int(point.zero_point.item()) - point.lowest, point.bits)


# Neighbour to neighbour -------------------------------------------------------------------------------------


def _join_neighbours(model: nn.Module) -> None:
    """Let LayerNorm, fc1 and GELU hand levels to the layer that would quantise what they emit."""
    known = structure(model)
    for layer, activated in known.activated.items():
        if activated.function == "gelu" and activated.before is not None:
            _join_mlp(model, activated.before, activated.module, layer)
    for norm in known.norms:
        if norm.layers and not (norm.padded or norm.cast or norm.averaged or norm.channels_first):
            _join_norm(model, norm.norm, norm.layers)


def _join_mlp(model: nn.Module, before: str, activation: str, layer: str) -> None:
    first, second, between = (model.get_submodule(name) for name in (before, layer, activation))
    alone = not any(True for _ in between.children()) and not between.state_dict()
    if alone and activation and type(first) is IntegerLinear and type(second) is IntegerLinear:
        first.feed_through_gelu(second)
        model.set_submodule(activation, nn.Identity())


def _join_norm(model: nn.Module, name: str, layers: Sequence[str]) -> None:
    """All layers that read a norm must quantise what it emits in the same way: its queries, keys and values."""
    norm = model.get_submodule(name)
    readers = [_first_stage(model.get_submodule(layer)) for layer in layers]
    affine = isinstance(norm, nn.LayerNorm) and norm.elementwise_affine and norm.bias is not None
    if not affine or any(type(reader) is not IntegerLinear for reader in readers):
        return
    inputs, types = {reader.input for reader in readers}, {reader.level_type for reader in readers}
    if len(inputs) == len(types) == 1:
        model.set_submodule(name, IntegerLayerNorm(norm, inputs.pop(), readers[0].level_type))  # type: ignore[arg-type]
        for reader in readers:
            reader.reads_levels = True


def _first_stage(layer: nn.Module) -> Any:
    return getattr(layer, INTEGER, layer) if isinstance(layer, IntegerStages) else layer

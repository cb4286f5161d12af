"""Activation points as a traced graph has them: QuantizeLinear and DequantizeLinear, or formulas of uneven steps."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.quantization.deployment.onnx_targets import Target
from psaq.quantization.model.points import LEARNT_TERMS, WEIGHT, Point, live_points, role
from psaq.quantization.model.watching import ATTENTION, Entry, Watched
from psaq.quantization.quantizers.affine import AffineQuantizer, asymmetric_per_tensor
from psaq.quantization.quantizers.uneven import LogQuantizer, SplitQuantizer

UINT8_ZERO = 128
_BYTE_BITS = 8


def swap_points(model: nn.Module, target: Target) -> None:
    """Put traceable points in the place of those that are live, weights' excepted."""
    activations = {name: point for name, point in live_points(model).items() if not name.endswith(f".{WEIGHT}")}
    floats = set() if target.keeps_uneven_steps else _beside_log_steps(model)
    scored = set(_scored(model))
    for name, point in activations.items():
        traceable = Point() if name in floats else _onnx_point(name, point, target, name in scored)
        model.set_submodule(name, traceable)


class _Quantized(torch.autograd.Function):
    """Fake quantisation to levels of a byte; in the graph, QuantizeLinear and DequantizeLinear."""

    @staticmethod
    def forward(_: Any, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        byte = torch.iinfo(zero_point.dtype)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point.int(), byte.min, byte.max)

    @staticmethod
    def symbolic(graph: Any, x: Any, scale: Any, zero_point: Any) -> Any:
        levels = graph.op("QuantizeLinear", x, scale, zero_point)
        return graph.op("DequantizeLinear", levels, scale, zero_point).setType(x.type())


class OnnxPoint(nn.Module):
    """Levels of a byte; around 0, of what is left when the middle of their range is taken away."""

    def __init__(self, point: AffineQuantizer, centred: bool = False):
        super().__init__()
        zero_point = point.zero_point - point.lowest
        self.register_buffer("scale", point.scale)
        kept = torch.zeros_like(zero_point).to(torch.int8) if centred else zero_point.to(torch.uint8)
        self.register_buffer("zero_point", kept)
        self.middle = (UINT8_ZERO - zero_point.item()) * point.scale.item() if centred else 0.0
        limits = torch.tensor([0, 2**point.bits - 1]) - zero_point.cpu()
        self.limits = None if point.bits == 8 else [limit * point.scale.item() for limit in limits.tolist()]

    def around_zero(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The levels' values without the middle."""
        inside = x if self.limits is None else x.clamp(*self.limits)
        return _Quantized.apply(inside - self.middle if self.middle else inside, self.scale, self.zero_point)

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        values = self.around_zero(x)
        return values + self.middle if self.middle else values


class _OnnxConstant(OnnxPoint):
    """Of what no image changes, added to what one does: OpenVINO takes no sum with the levels of a constant."""

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return torch.from_numpy(super().forward(x.detach()).detach().numpy())


class _OnnxAroundZero(nn.Module):
    """Levels of a byte with 0 in their middle, over the range of a point."""

    def __init__(self, point: AffineQuantizer, dtype: torch.dtype):
        super().__init__()
        levels, _ = point.grid()
        self.register_buffer("scale", levels.abs().amax() / torch.iinfo(torch.int8).max)
        self.register_buffer("zero_point", torch.tensor(UINT8_ZERO if dtype == torch.uint8 else 0, dtype=dtype))

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return _Quantized.apply(x, self.scale, self.zero_point)


class _OnnxLogPoint(nn.Module):
    """Levels by ordinary operators, their values from a table: ONNX itself quantises by even steps only."""

    table: Tensor

    def __init__(self, point: LogQuantizer):
        super().__init__()
        self.point = point
        self.register_buffer("table", point.real(torch.arange(2**point.bits).to(point.top)))

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return self.table[self.point.levels(x).long()]


class _OnnxSplitPoint(nn.Module):
    """Each part's levels by ordinary operators."""

    def __init__(self, point: SplitQuantizer):
        super().__init__()
        self.point = point

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return self.point.values(x)


def _onnx_point(name: str, point: nn.Module, target: Target, is_scored: bool) -> nn.Module:
    if isinstance(point, AffineQuantizer):
        if is_scored and target.scores is not None:
            return _OnnxAroundZero(point, target.scores)
        if role(name) in LEARNT_TERMS:
            return _OnnxConstant(point)
        return OnnxPoint(point, target.int8_activations)
    if isinstance(point, LogQuantizer):
        return _OnnxLogPoint(point)
    if isinstance(point, SplitQuantizer):
        if target.keeps_uneven_steps:
            return _OnnxSplitPoint(point)
        return OnnxPoint(asymmetric_per_tensor(point.lowest, point.top, _BYTE_BITS), target.int8_activations)
    raise PsaqError(f"{name}: ONNX has no operator for a {type(point).__name__}; take what psaq.quantize returned")


def _scored(model: nn.Module) -> Iterator[str]:
    """Queries and keys of fused attentions."""
    for prefix, entry in _product_entries(model):
        if len(entry) == len(ATTENTION):
            yield from (f"{prefix}{point}" for point in entry[:2])


def _beside_log_steps(model: nn.Module) -> set[str]:
    """Both factors of the products whose probabilities have log steps."""
    names = set()
    for prefix, entry in _product_entries(model):
        factors = {role(point): f"{prefix}{point}" for point in entry if point is not None}
        if "probabilities" in factors and isinstance(model.get_submodule(factors["probabilities"]), LogQuantizer):
            names |= {factors["probabilities"], factors["value"]}
    return names


def _product_entries(model: nn.Module) -> Iterator[tuple[str, tuple[str | None, ...]]]:
    """The path of the module that makes a product, and the points of it."""
    for path, module in model.named_modules():
        if isinstance(module, Watched):
            entries: list[Entry] = [
                entry for calls in module.psaq_watched.values() for entry in calls.get("product", ())
            ]
            yield from ((f"{path}." if path else "", entry) for entry in entries if entry is not None)

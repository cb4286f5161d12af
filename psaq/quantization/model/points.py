"""Quantisation points: the named places of a model where a tensor may be quantised.

A quantised module is the timm or torch module itself: it keeps its parameters, children and names, and only its
class becomes a subclass whose forward leads through the points. So whatever works with the model (features, hooks,
state dicts) works with the quantised one. A point is a child module: it starts as `Point`, the identity, holds an
observer during calibration, and a quantiser afterwards. Its name is its path: "blocks.3.attn.scores".
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from psaq.errors import PsaqError

Scope = Literal["all", "matmul", "linear"]
"""Which activations are quantised beside the weights; see `SCOPES`."""

_LINEAR = ("*.input",)
_MATMUL = (*_LINEAR, "*.query", "*.key", "*.value", "*.probabilities")
_AUTHORS = (
    "*.input",
    "*patch_embed.proj.output",
    "*tokens",
    "*position_embedding",
    "*embedded",
    "*.qkv.output",
    "*.scores",
    "*.bias_table",
    "*.biased_scores",
    "*.proj.output",
    "*.residual1",
    "*.fc2.output",
    "*.residual2",
    "*.reduction.output",
    "*features",
    "*head*.output",
)

SCOPES: dict[Scope, tuple[str, ...]] = {"all": _AUTHORS, "matmul": _MATMUL, "linear": _LINEAR}
"""Scope → patterns of the live activation points.

- ``all``: the authors' points. LayerNorm internals, the softmax output and fc1's output stay in float.
- ``matmul``: the inputs of every matrix product, attention's included.
- ``linear``: the inputs of the linear layers and of the patch embedding's convolution.
"""

WEIGHT = "weight_quantizer"


class Point(nn.Identity):
    """A place where nothing is quantised (yet)."""


class Quantized(nn.Module):
    """Base of every module with quantisation points."""

    points: tuple[str, ...] = ()

    if TYPE_CHECKING:  # torch types every child as "Tensor or Module"; points are callable

        def __getattr__(self, name: str) -> Any: ...

    def point_names(self) -> tuple[str, ...]:
        """The points that this module's forward passes through."""
        return self.points

    def any_live(self, *points: str) -> bool:
        """Whether something observes or quantises at one of these points."""
        return any(not isinstance(getattr(self, point), Point) for point in points)


def all_points(model: nn.Module) -> dict[str, nn.Module]:
    """Every quantisation point of a converted model, by name, and what is there now."""
    return {
        f"{path}.{point}" if path else point: getattr(module, point)
        for path, module in model.named_modules()
        if isinstance(module, Quantized)
        for point in module.point_names()
    }


def live_points(model: nn.Module) -> dict[str, nn.Module]:
    """The points where something observes or quantises."""
    return {name: point for name, point in all_points(model).items() if not isinstance(point, Point)}


def points_in_scope(names: Iterable[str], scope: Scope) -> list[str]:
    """The activation points, of those named, that a scope quantises. Raises PsaqError for an unknown scope."""
    if scope not in SCOPES:
        raise PsaqError(f"scope {scope!r}: there is none of that name; choose from {', '.join(SCOPES)}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in SCOPES[scope])]


def weight_points(names: Iterable[str]) -> list[str]:
    """Those of the points where a weight passes."""
    return [name for name in names if name.endswith(f".{WEIGHT}")]


def layer_of(point: str) -> str:
    """The module that a point or a parameter belongs to, by name."""
    return point.rpartition(".")[0]

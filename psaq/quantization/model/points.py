"""Quantisation points: the named places of a model where a tensor may be quantised.

A quantised module is the user's module itself: it keeps its parameters, children and names, and only its class becomes
a subclass whose calls lead through the points. So whatever works with the model (features, hooks, state dicts) works
with the quantised one. A point is a child module: it starts as `Point`, the identity, holds an observer during
calibration, and a quantiser afterwards. Its name is its path, and the end of it says what passes there:
"blocks.3.attn.scores".
"""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from psaq.choices import Scope
from psaq.errors import PsaqError
from psaq.suggestions import did_you_mean

WEIGHT = "weight_quantizer"
BARE_WEIGHT = "bare_weight"
"""A parameter that a product takes without a layer around it; quantised like a weight, wherever activations are."""

LEARNT_TERMS = frozenset({"position_embedding", "bias_table"})
"""Roles of what parameters alone give, and no image changes, before it is added to what images do."""

_LINEAR = frozenset({"input", BARE_WEIGHT})
_FACTORS = frozenset({"query", "key", "value", "probabilities", "left", "right"})
_AUTHORS = frozenset(
    {
        "output",
        "tokens",
        "embedded",
        "scores",
        "biased_scores",
        "residual",
        *LEARNT_TERMS,
    }
)

SCOPES: dict[Scope, frozenset[str]] = {
    "all": _LINEAR | _AUTHORS,
    "matmul": _LINEAR | _FACTORS,
    "linear": _LINEAR,
}
"""Scope → roles of the live activation points.

- ``all``: the authors' points: inputs of layers, their outputs unless an activation function follows, the outputs of
  norms that no layer reads as they are, attention scores, tokens, position embeddings, residual sums.
- ``matmul``: the inputs of every matrix product, attention's included.
- ``linear``: the inputs of the linear and convolution layers.
"""


_NAMED = 4


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

    def is_live(self, *points: str | None) -> bool:
        """Whether something observes or quantises at one of these points."""
        return any(point is not None and not isinstance(getattr(self, point), Point) for point in points)


def role(point: str) -> str:
    """What passes at a point: its name without its path, its number, and what tells it from a module's own child."""
    match = re.fullmatch(r"(.*?)\d*(?:_point)?", point.rpartition(".")[2])
    assert match is not None
    return match[1]


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


def points_in_scope(qmodel: nn.Module, scope: Scope) -> list[str]:
    """The activation points that a scope quantises. Raises PsaqError for an unknown scope."""
    if scope not in SCOPES:
        raise PsaqError(f"scope {scope!r}: there is none of that name{did_you_mean(scope, SCOPES)}")
    return _named(qmodel, lambda name: role(name) in SCOPES[scope] and not _feeds_activation(qmodel, name))


def weight_points(qmodel: nn.Module) -> list[str]:
    """The points where the weight of a layer passes."""
    return _named(qmodel, lambda name: role(name) == WEIGHT)


def some_of(names: Sequence[str]) -> str:
    """The first few of these, to be read in a sentence."""
    return ", ".join([*names[:_NAMED], *(["…"] if len(names) > _NAMED else [])])


def layer_of(point: str) -> str:
    """The module that a point or a parameter belongs to, by name."""
    return point.rpartition(".")[0]


def _feeds_activation(qmodel: nn.Module, point: str) -> bool:
    return role(point) == "output" and layer_of(point) in qmodel.psaq_structure.feeds_activation  # type: ignore[operator, union-attr]


def _named(qmodel: nn.Module, wanted: Callable[[str], bool]) -> list[str]:
    return [name for name in all_points(qmodel) if wanted(name)]

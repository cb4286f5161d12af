"""Recipes: how to quantise a model."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from psaq.errors import PsaqError
from psaq.quantization.affine import check_bits
from psaq.quantization.points import SCOPES, Scope


@dataclass(frozen=True)
class Recipe:
    """How to quantise. W4A8 is ``Recipe.paper(weights=4, activations=8)``.

    Raises:
        PsaqError: bits outside 2 to 8, or an unknown scope.
    """

    weights: int = 8
    """Bits per weight, 2 to 8."""
    activations: int = 8
    """Bits per activation, 2 to 8."""
    scope: Scope = "all"
    """Which activations: "all" (the authors' points), "matmul" (inputs of every matrix product) or "linear"."""
    faithful: bool = False
    """Keep the flaw of the authors' code: ranges without zero lose their far end."""

    def __post_init__(self) -> None:
        check_bits("weights", self.weights)
        check_bits("activations", self.activations)
        if self.scope not in SCOPES:
            raise PsaqError(f"scope {self.scope!r}: there is none of that name; choose from {', '.join(SCOPES)}")

    @classmethod
    def paper(cls, weights: int = 8, activations: int = 8, scope: Scope = "all", faithful: bool = False) -> "Recipe":
        """The quantiser of Li et al. (2022): min-max ranges, weights symmetric per output channel, activations
        asymmetric per tensor."""
        return cls(weights, activations, scope, faithful)

    def __str__(self) -> str:
        faithful = ", faithful" if self.faithful else ""
        return f"W{self.weights}A{self.activations} ({self.scope}{faithful})"


RECIPES: dict[str, Callable[..., Recipe]] = {"paper": Recipe.paper}
"""Name → its constructor, of bits per weight and bits per activation."""


def parse_precision(precision: str) -> tuple[int, int]:
    """ "W4A8" as the bits of weights and of activations, (4, 8). Raises PsaqError for anything else."""
    parts = re.fullmatch(r"W(\d+)A(\d+)", precision.upper())
    if parts is None:
        raise PsaqError(f"precision {precision!r}: write it as W4A8, the bits of weights and of activations")
    return int(parts[1]), int(parts[2])

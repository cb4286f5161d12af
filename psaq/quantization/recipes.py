"""Recipes: how to quantise a model."""

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from psaq.choices import Group, Scope
from psaq.errors import PsaqError
from psaq.quantization.quantizers.bits import SCALE_BITS, check_bits, may_be_grouped
from psaq.suggestions import did_you_mean

_FEW_BITS = 4
"""Up to here activations are clipped, and attention stays as it is for weights. Tried on a DeiT-Tiny: clipping costs
accuracy at 6 and 8 bits; equalising attention costs some at 4, gains at 6 and changes nothing at 8."""

Override = tuple[str, int | None, int | None]
"""A layer's name or a pattern of names, bits per weight, bits per activation; twice None leaves it in float."""


@dataclass(frozen=True)
class Recipe:
    """How to quantise. W4A8 is ``Recipe.paper(weights=4, activations=8)``.

    Raises:
        PsaqError: a field that is not what its comment says, named with what it may be.
    """

    weights: int = 8
    """Bits per weight, 2 to 8."""
    activations: int = 8
    """Bits per activation, 2 to 8."""
    scope: Scope = "all"
    """Which activations: "all" (the authors' points), "matmul" (inputs of every matrix product) or "linear"."""
    faithful: bool = False
    """Keep the flaw of the authors' code: ranges without zero lose their far end."""
    weight_scales: Literal["max", "squared_error"] = "max"
    """Weights: the scale that holds the largest, or the one of the least squared error."""
    ranges: Literal["full", "search"] = "full"
    """Activations: everything that was observed, or the range of the least error at the layer's output."""
    softmax: Literal["uniform", "log"] = "uniform"
    """Softmax outputs: even steps, or even ratios with a base that is searched for."""
    gelu: Literal["uniform", "split"] = "uniform"
    """GELU outputs: one step, or few levels for the negative part and, where that pays, squares for the positive."""
    rounding: Literal["nearest", "gptq"] = "nearest"
    """Weights: to the nearest level each, or so that later ones make up for the error of earlier ones."""
    damping: float = 0.3
    """Of GPTQ: added to its Hessian's diagonal, as a part of its mean. More trusts the calibration images less."""
    group: Group | None = None
    """Weights of up to 4 bits, of linear layers: inputs that share a scale of 16 bits, 32, 64 or 128. None: all of an
    output channel, as in other layers and in those of no more inputs."""
    pixel_grid: bool = False
    """Quantise images at 8 bits from black to white, level by level, not over the range that was observed. It takes a
    model that says how its images are normalised, and calibration images that keep to that: noise does not."""
    rotate: Literal["none", "streams", "all"] = "none"
    """Spread large channels over all others by rotations: residual streams, or attention's heads, too."""
    fold: float = 0.0
    """How much of the spread between a LayerNorm's channels moves into the weight behind it, 0 to 1 (all)."""
    centre: bool = False
    """Move the middle of each channel's range to zero, of LayerNorms and, where ``equalize``, of keys and values."""
    equalize: bool = False
    """Give query and key one range per channel, and the channels of value one range, by scaling qkv and proj."""
    error_correction: float = 0.0
    """Refit a weight to its quantised input by ridge regression; 0 is off, larger departs further."""
    bias_compensation: bool = False
    """Add to each bias what quantisation took from the mean of its layer's output."""
    collages: int = 0
    """Calibrate also on so many collages of every image: parts of images set into one another, in other colours."""
    flat_copies: int = 0
    """Calibrate also on smooth, saturated copies of this many images: photographs have large flat areas, images
    made by optimisation have none."""
    reconstruction_steps: int = 0
    """Steps for which each block is trained to emit what it did before; 0 is off."""
    distillation_steps: int = 0
    """Steps for which the whole model is trained to answer as it did; 0 is off."""
    ends: int | None = None
    """Bits of the first and the last layer, where they differ from the others'."""
    overrides: tuple[Override, ...] = ()
    """Bits of layers by name pattern, the first that fits: ("blocks.*.mlp.fc2", 8, 8); ("head", None, None) leaves the
    head in float."""

    def __post_init__(self) -> None:
        check_bits("weights", self.weights)
        check_bits("activations", self.activations)
        if self.ends is not None:
            check_bits("ends", self.ends)
        object.__setattr__(self, "overrides", _overrides(self.overrides))
        for field, allowed in _CHOICES.items():
            if getattr(self, field) not in allowed:
                raise PsaqError(f"{field} {(value := getattr(self, field))!r}{did_you_mean(str(value), allowed)}")
        if self.group is not None and (type(self.group) is not int or self.group not in get_args(Group)):
            sizes = ", ".join(map(str, get_args(Group)))
            raise PsaqError(f"group {self.group!r}: must be {sizes} inputs, or None for one scale an output channel")
        self._check_switches_and_numbers()

    def _check_switches_and_numbers(self) -> None:
        for field in ("faithful", "pixel_grid", "centre", "equalize", "bias_compensation"):
            if not isinstance(getattr(self, field), bool):
                raise PsaqError(f"{field} {getattr(self, field)!r}: must be True or False")
        if not _is_number(self.fold) or not 0 <= self.fold <= 1:
            raise PsaqError(f"fold {self.fold!r}: must be within [0, 1], the part of the spread that moves")
        for field in ("error_correction", "damping"):
            if not _is_number(value := getattr(self, field)) or not 0 <= value < math.inf:
                raise PsaqError(f"{field} {value!r}: must be a finite number, at least 0")
        for field in ("fold", "error_correction", "damping"):  # 1 and 1.0 are one recipe
            object.__setattr__(self, field, float(getattr(self, field)))
        for field in ("collages", "flat_copies", "reconstruction_steps", "distillation_steps"):
            if type(value := getattr(self, field)) is not int or value < 0:
                raise PsaqError(f"{field} {value!r}: must be a whole number, at least 0")

    @classmethod
    def paper(cls, weights: int = 8, activations: int = 8, scope: Scope = "all", faithful: bool = False) -> "Recipe":
        """The quantiser of Li et al. (2022): min-max ranges, weights symmetric per output channel, activations
        asymmetric per tensor."""
        return cls(weights, activations, scope, faithful)

    @classmethod
    def accurate(cls, weights: int = 8, activations: int = 8, scope: Scope = "matmul", **parts: Any) -> "Recipe":
        """The quantiser to use: parts of later literature, chosen and set by trial on a real DeiT-Tiny.

        With ``scope="linear"`` GELU outputs keep one range, so that fc2 runs in integers, too.

        Args:
            **parts: any other field, to switch a part off or on by its name.
        """
        check_bits("weights", weights)
        check_bits("activations", activations)
        usual: dict[str, Any] = {
            "weight_scales": "squared_error",
            "softmax": "log",
            "gelu": "uniform" if scope == "linear" else "split",
            "rounding": "gptq",
            "pixel_grid": True,
            # In a rotated head all rows of the weight have the error of the largest, which low bits pay for.
            "rotate": "all" if activations <= weights else "streams",
            "equalize": weights > _FEW_BITS,
            "bias_compensation": True,
            "collages": 2 if weights < 8 else 0,
            "flat_copies": 16,
            "ends": 8,
            "centre": True,
            "fold": 0.5 if activations < 8 else 0.0,
            "ranges": "search" if activations <= _FEW_BITS else "full",
        }
        return cls(weights, activations, scope, **{**usual, **parts})

    def bits(self, layer: str, is_end: bool = False) -> tuple[int | None, int | None]:
        """Bits of the weight and of the activations of a layer by its name ("blocks.3.attn.qkv").

        The first override whose pattern fits decides; otherwise ``ends`` for the first and the last layer, and the
        recipe's own bits.
        """
        for pattern, weights, activations in self.overrides:
            if fnmatchcase(layer, pattern):
                return weights, activations
        if is_end and self.ends is not None:
            return self.ends, self.ends
        return self.weights, self.activations

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that change with any field: what a stored result was measured with.

        A field that stands at its default has no part in it, so that results outlive the fields that come later. A
        default must therefore never change: give the recipes another value instead.
        """
        chosen = {field.name: value for field in fields(self) if (value := getattr(self, field.name)) != field.default}
        return hashlib.sha256(repr(chosen).encode()).hexdigest()[:8]

    @property
    def weight_bits(self) -> float:
        """Bits that a weight takes with its part of its group's scale: 4.25 for 4 bits in groups of 64. Scales of whole
        channels count for nothing."""
        if self.group is None or not may_be_grouped(self.weights):
            return self.weights
        return self.weights + SCALE_BITS / self.group

    @property
    def stored(self) -> dict[str, Any]:
        """The fields as files hold them: without a group where there is none, so that versions before groups read
        them."""
        every = asdict(self)
        return every if self.group is not None else {name: value for name, value in every.items() if name != "group"}

    @property
    def in_order(self) -> bool:
        """Whether a layer's quantiser depends on what the layers before it emit once they are quantised."""
        return (
            self.rounding != "nearest"
            or self.bias_compensation
            or self.error_correction > 0
            or self.reconstruction_steps > 0
            or self.distillation_steps > 0
        )

    def __str__(self) -> str:
        kind = "" if self.weight_scales == "max" else ", accurate"
        group = "" if self.group is None else f", groups of {self.group}: {self.weight_bits:g} bits a weight"
        faithful = ", faithful" if self.faithful else ""
        count = len(self.overrides)
        overrides = f", {count} override{'s' if count > 1 else ''}" if count else ""
        return f"W{self.weights}A{self.activations} ({self.scope}{kind}{faithful}{overrides}{group})"


RECIPES: dict[str, Callable[..., Recipe]] = {"paper": Recipe.paper, "accurate": Recipe.accurate}
"""Name → its constructor, of bits per weight and bits per activation."""

_CHOICES: dict[str, tuple[str, ...]] = {
    "scope": get_args(Scope),
    "weight_scales": ("max", "squared_error"),
    "ranges": ("full", "search"),
    "softmax": ("uniform", "log"),
    "gelu": ("uniform", "split"),
    "rounding": ("nearest", "gptq"),
    "rotate": ("none", "streams", "all"),
}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _overrides(entries: Any) -> tuple[Override, ...]:
    if not isinstance(entries, tuple | list):
        raise PsaqError(f"overrides {entries!r}: give a list of (name pattern, bits per weight, bits per activation)")
    return tuple(_override(entry) for entry in entries)


def _override(entry: Any) -> Override:
    if not isinstance(entry, tuple | list) or len(entry) != 3 or not isinstance(entry[0], str):
        raise PsaqError(f"override {entry!r}: write it as (name pattern, bits per weight, bits per activation)")
    pattern, weights, activations = entry
    if weights is None and activations is None:
        return pattern, None, None
    return pattern, check_bits(f"override {pattern}", weights), check_bits(f"override {pattern}", activations)


def parse_precision(precision: str) -> tuple[int, int]:
    """ "W4A8" as the bits of weights and of activations, (4, 8). Raises PsaqError for anything else."""
    parts = re.fullmatch(r"W(\d+)A(\d+)", precision.upper())
    if parts is None:
        raise PsaqError(f"precision {precision!r}: write it as W4A8, the bits of weights and of activations")
    return int(parts[1]), int(parts[2])

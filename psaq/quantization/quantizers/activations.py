"""Which quantiser an activation gets, from what was observed of it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor, nn

from psaq.quantization.model.conversion import structure
from psaq.quantization.model.points import layer_of, role
from psaq.quantization.model.structure import Activated
from psaq.quantization.passes.pixels import PIXEL_BITS, RANGE, reads_pixels
from psaq.quantization.quantizers.affine import AffineQuantizer, Quantizer, asymmetric_per_tensor
from psaq.quantization.quantizers.observers import MinMaxObserver, SamplingObserver
from psaq.quantization.quantizers.sorted_sample import SortedSample
from psaq.quantization.quantizers.uneven import SplitQuantizer, log_quantizer, split_quantizer
from psaq.quantization.recipes import Recipe

_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3)
_CURVES = (1, 2)
_GELUS = ("gelu", "gelu tanh", "quick_gelu")
_POSITIVE = ("relu", "relu6", "sigmoid")
_NEGATIVE_SHARES = (1 / 16, 1 / 8, 3 / 16, 1 / 4, 1 / 2)

_Searched = TypeVar("_Searched", AffineQuantizer, SplitQuantizer)


def observer(qmodel: nn.Module, name: str, recipe: Recipe) -> MinMaxObserver:
    """An observer that sees what this point's quantiser is chosen from."""
    samples = recipe.ranges == "search" or _needs_a_sample(qmodel, name, recipe)
    return SamplingObserver() if samples else MinMaxObserver()


def activation_quantizer(qmodel: nn.Module, name: str, recipe: Recipe, bits: int) -> Quantizer:
    """The quantiser for the point ``name``, where an observer from `observer` stands.

    Raises:
        PsaqError: nothing was observed, or NaN or infinity.
    """
    observed = qmodel.get_submodule(name)
    assert isinstance(observed, MinMaxObserver)
    low, high = observed.range(name)
    if bits == PIXEL_BITS and reads_pixels(qmodel, name):
        black, white = (low.new_tensor(end) for end in RANGE)
        return asymmetric_per_tensor(black, white, bits)
    if not isinstance(observed, SamplingObserver):
        return asymmetric_per_tensor(low, high, bits, include_zero=not recipe.faithful)
    if _is_softmax(name) and recipe.softmax == "log":
        return log_quantizer(observed.sample, observed.shares, high, bits)
    sample = SortedSample(observed.sample, observed.shares, _column_energy(qmodel, name))
    choice = _Choice(sample, search=recipe.ranges == "search")
    uniform = partial(asymmetric_per_tensor, bits=bits, include_zero=not recipe.faithful)
    activated = _activated(qmodel, name)
    if recipe.gelu == "uniform" or activated is None or not low < 0 < high:
        return choice.best(uniform, low, high)
    split = choice.split(low, high, bits)
    if activated.function in _GELUS:
        return split
    even = choice.best(uniform, low, high)
    return split if sample.error(split) <= sample.error(even) else even


@dataclass(frozen=True)
class _Choice:
    """A choice among quantisers, by the error that each leaves at the output of the layer that reads the point."""

    sample: SortedSample
    search: bool
    """Whether ranges may shrink."""

    def best(self, quantizer: Callable[[Tensor, Tensor], _Searched], low: Tensor, high: Tensor) -> _Searched:
        """The quantiser of the best range: both ends shrunk together, then each."""
        if self.search:

            def error(ends: tuple[Tensor, Tensor]) -> float:
                return self.sample.error(quantizer(*ends))

            low, high = min(((low * a, high * a) for a in _SHRINK), key=error)
            low, high = min(((low * a, high) for a in _SHRINK), key=error)
            low, high = min(((low, high * a) for a in _SHRINK), key=error)
        return quantizer(low, high)

    def split(self, low: Tensor, high: Tensor, bits: int) -> SplitQuantizer:
        """Of split quantisers: first the curve and the range, then how many levels lie below zero."""
        curves = [self.best(partial(split_quantizer, bits=bits, curve=curve), low, high) for curve in _CURVES]
        chosen = min(curves, key=self.sample.error)
        ends = chosen.lowest, chosen.top
        shared = (split_quantizer(*ends, bits, chosen.curve, share) for share in _NEGATIVE_SHARES)
        return min(shared, key=self.sample.error)


def _column_energy(qmodel: nn.Module, name: str) -> Float[Tensor, " channels"] | None:
    """Σ_out w² per input of the linear layer that reads this point: what an error in a channel costs its output."""
    layer = qmodel.get_submodule(layer_of(name))
    if role(name) != "input" or not isinstance(layer, nn.Linear):
        return None
    return layer.weight.detach().float().square().sum(0)


def _needs_a_sample(qmodel: nn.Module, name: str, recipe: Recipe) -> bool:
    activated = recipe.gelu == "split" and _activated(qmodel, name) is not None
    return activated or (_is_softmax(name) and recipe.softmax == "log")


def _is_softmax(name: str) -> bool:
    return role(name) == "probabilities"


def _activated(qmodel: nn.Module, name: str) -> Activated | None:
    """The activation function whose output passes a point, unless it has no negative part."""
    if role(name) != "input":
        return None
    found = structure(qmodel).activated.get(layer_of(name))
    return None if found is None or found.function in _POSITIVE else found


def is_end(qmodel: nn.Module, layer: str) -> bool:
    """Whether a layer reads the image or writes the answer."""
    return layer in structure(qmodel).ends

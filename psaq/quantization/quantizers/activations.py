"""Which quantiser an activation gets, from what was observed of it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from jaxtyping import Float
from timm.layers import Mlp
from torch import Tensor, nn

from psaq.quantization.model.layers import QuantConv2d, QuantLinear
from psaq.quantization.model.points import layer_of
from psaq.quantization.passes.pixels import PIXEL_BITS, RANGE, reads_pixels
from psaq.quantization.quantizers.affine import Quantizer, asymmetric_per_tensor
from psaq.quantization.quantizers.observers import MinMaxObserver, SamplingObserver
from psaq.quantization.quantizers.uneven import SplitQuantizer, log_quantizer, split_quantizer
from psaq.quantization.recipes import Recipe

_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3)
_CURVES = (1, 2)
_NEGATIVE_SHARES = (1 / 16, 1 / 8, 3 / 16, 1 / 4, 1 / 2)


def observer(name: str, recipe: Recipe) -> MinMaxObserver:
    """An observer that sees what this point's quantiser is chosen from."""
    samples = recipe.ranges == "search" or _needs_a_sample(name, recipe)
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
        return log_quantizer(observed.sample, high, bits)
    choice = _Choice(observed.sample, _column_energy(qmodel, name), search=recipe.ranges == "search")
    if recipe.gelu == "split" and _follows_gelu(qmodel, name) and low < 0 < high:
        return choice.split(low, high, bits)
    return choice.best(partial(asymmetric_per_tensor, bits=bits, include_zero=not recipe.faithful), low, high)


@dataclass(frozen=True)
class _Choice:
    """A choice among quantisers, by the error that each leaves at the output of the layer that reads the point."""

    sample: Float[Tensor, "rows channels"]
    importance: Float[Tensor, " channels"] | None
    search: bool
    """Whether ranges may shrink."""

    def error(self, quantizer: Quantizer) -> float:
        squares = (quantizer(self.sample) - self.sample).square().mean(0)
        return float(squares.mean() if self.importance is None else squares @ self.importance.to(squares))

    def best(self, quantizer: Callable[[Tensor, Tensor], Quantizer], low: Tensor, high: Tensor) -> Quantizer:
        """The quantiser of the best range: both ends shrunk together, then each."""
        if self.search:

            def error(ends: tuple[Tensor, Tensor]) -> float:
                return self.error(quantizer(*ends))

            low, high = min(((low * a, high * a) for a in _SHRINK), key=error)
            low, high = min(((low * a, high) for a in _SHRINK), key=error)
            low, high = min(((low, high * a) for a in _SHRINK), key=error)
        return quantizer(low, high)

    def split(self, low: Tensor, high: Tensor, bits: int) -> Quantizer:
        """Of split quantisers: first the curve and the range, then how many levels lie below zero."""
        curves = [self.best(partial(split_quantizer, bits=bits, curve=curve), low, high) for curve in _CURVES]
        chosen = min(curves, key=self.error)
        assert isinstance(chosen, SplitQuantizer)
        ends = chosen.lowest, chosen.top
        return min((split_quantizer(*ends, bits, chosen.curve, share) for share in _NEGATIVE_SHARES), key=self.error)


def _column_energy(qmodel: nn.Module, name: str) -> Float[Tensor, " channels"] | None:
    """Σ_out w² per input of the linear layer that reads this point: what an error in a channel costs its output."""
    layer = qmodel.get_submodule(layer_of(name))
    if not name.endswith(".input") or not isinstance(layer, QuantLinear):
        return None
    return layer.weight.detach().float().square().sum(0)


def _needs_a_sample(name: str, recipe: Recipe) -> bool:
    return (_is_softmax(name) and recipe.softmax == "log") or (_is_fc2(name) and recipe.gelu == "split")


def _is_fc2(name: str) -> bool:
    return name.endswith(".fc2.input")


def _is_softmax(name: str) -> bool:
    return name.endswith(".probabilities")


def _follows_gelu(qmodel: nn.Module, name: str) -> bool:
    mlp = qmodel.get_submodule(layer_of(layer_of(name)))
    plain = isinstance(mlp, Mlp) and isinstance(mlp.act, nn.GELU) and isinstance(mlp.norm, nn.Identity)
    return plain and _is_fc2(name)


def is_end(qmodel: nn.Module, name: str) -> bool:
    """Whether a layer reads the image or writes the logits."""
    first = next(name for name, module in qmodel.named_modules() if isinstance(module, QuantLinear | QuantConv2d))
    return name == first or name.rpartition(".")[2] in ("head", "head_dist") or name.endswith("head.fc")

"""Which quantiser an activation gets, from what was observed of it."""

from collections.abc import Callable

from jaxtyping import Float
from timm.layers import Mlp
from torch import Tensor, nn

from psaq.quantization.affine import Quantizer, asymmetric_per_tensor
from psaq.quantization.layers import QuantConv2d, QuantLinear
from psaq.quantization.observers import MinMaxObserver, SamplingObserver
from psaq.quantization.points import layer_of
from psaq.quantization.recipes import Recipe
from psaq.quantization.uneven import log_quantizer, split_quantizer

_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3)


def observer(name: str, recipe: Recipe) -> MinMaxObserver:
    """An observer that sees what this point's quantiser is chosen from."""
    samples = recipe.ranges == "search" or (_is_softmax(name) and recipe.softmax == "log")
    return SamplingObserver() if samples else MinMaxObserver()


def activation_quantizer(qmodel: nn.Module, name: str, recipe: Recipe, bits: int) -> Quantizer:
    """The quantiser for the point ``name``, where an observer from `observer` stands.

    Raises:
        PsaqError: nothing was observed, or NaN or infinity.
    """
    observed = qmodel.get_submodule(name)
    assert isinstance(observed, MinMaxObserver)
    low, high = observed.range(name)
    if _is_softmax(name) and recipe.softmax == "log":
        assert isinstance(observed, SamplingObserver)
        return log_quantizer(observed.sample, high, bits)
    split = recipe.gelu == "split" and _follows_gelu(qmodel, name) and low < 0 < high

    def quantizer(low: Tensor, high: Tensor) -> Quantizer:
        if split:
            return split_quantizer(low, high, bits)
        return asymmetric_per_tensor(low, high, bits, include_zero=not recipe.faithful)

    if recipe.ranges == "search":
        assert isinstance(observed, SamplingObserver)
        low, high = _searched(quantizer, observed.sample, low, high, _column_energy(qmodel, name))
    return quantizer(low, high)


def _searched(
    quantizer: Callable[[Tensor, Tensor], Quantizer],
    sample: Float[Tensor, "rows channels"],
    low: Tensor,
    high: Tensor,
    importance: Float[Tensor, " channels"] | None,
) -> tuple[Tensor, Tensor]:
    """The range of the least error at the output of the layer that reads it: both ends shrunk together, then each."""

    def error(bounds: tuple[Tensor, Tensor]) -> float:
        squares = (quantizer(*bounds)(sample) - sample).square().mean(0)
        return float(squares.mean() if importance is None else squares @ importance)

    low, high = min(((low * a, high * a) for a in _SHRINK), key=error)
    low, high = min(((low * a, high) for a in _SHRINK), key=error)
    return min(((low, high * a) for a in _SHRINK), key=error)


def _column_energy(qmodel: nn.Module, name: str) -> Float[Tensor, " channels"] | None:
    """Σ_out w² per input of the linear layer that reads this point: what an error in a channel costs its output."""
    layer = qmodel.get_submodule(layer_of(name))
    if not name.endswith(".input") or not isinstance(layer, QuantLinear):
        return None
    return layer.weight.detach().float().square().sum(0)


def _is_softmax(name: str) -> bool:
    return name.endswith(".probabilities")


def _follows_gelu(qmodel: nn.Module, name: str) -> bool:
    mlp = qmodel.get_submodule(layer_of(layer_of(name)))
    plain = isinstance(mlp, Mlp) and isinstance(mlp.act, nn.GELU) and isinstance(mlp.norm, nn.Identity)
    return plain and name.endswith(".fc2.input")


def is_end(qmodel: nn.Module, name: str) -> bool:
    """Whether a layer reads the image or writes the logits."""
    first = next(name for name, module in qmodel.named_modules() if isinstance(module, QuantLinear | QuantConv2d))
    return name == first or name.rpartition(".")[2] in ("head", "head_dist") or name.endswith("head.fc")

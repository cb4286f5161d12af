"""Rescaling a model so that it computes the same but quantises better; nothing of it is left at run time."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from psaq.models.calling import run
from psaq.quantization.model.heads import PlainAttention, Projection
from psaq.quantization.model.layers import add_to_bias
from psaq.quantization.model.structure import NormReaders

_SMALLEST = 1e-5  # of the largest: a channel that is always zero keeps a factor


@torch.no_grad()
def fold_norms(
    model: nn.Module, norms: list[NormReaders], batches: list[Tensor], strength: float, centre: bool = False
) -> None:
    """Divide each norm's channels by factors that the next weights are multiplied with.

    The factors are (max|y| per channel)^strength, with geometric mean 1: at 1 all channels of the norm's output
    have one range (RepQ-ViT: Li et al. 2023), and the weights take all of the spread; between 0 and 1 they share it
    (SmoothQuant: Xiao et al. 2023).

    Args:
        norms: `foldable` ones.
        centre: first subtract from each channel the middle of its range; the next biases make up for it.
    """
    ranges = _ranges(model, {norm.norm: 1 if norm.channels_first else -1 for norm in norms}, batches)
    for found in norms:
        norm: Any = model.get_submodule(found.norm)
        channels = ranges[found.norm]
        layers = [model.get_submodule(layer) for layer in found.layers]
        offset: Any = getattr(norm, "bias", None)
        middle = channels.middle * float(centre and offset is not None and not found.padded)
        if middle.any():
            offset -= middle
            for layer in layers:
                add_to_bias(layer, layer.get_parameter("weight") @ middle)
        factors = _factors(channels.extent_about(middle)).pow(strength)
        norm.get_parameter("weight").div_(factors)
        if offset is not None:
            offset /= factors
        for layer in layers:
            layer.get_parameter("weight").mul_(factors)


def foldable(model: nn.Module, norms: tuple[NormReaders, ...], ends: tuple[str, ...]) -> list[NormReaders]:
    """The norms that linear layers read channel by channel, none of them at an end of the model, in its order."""
    order = {name: place for place, (name, _) in enumerate(model.named_modules())}

    def fits(norm: NormReaders) -> bool:
        layers = [model.get_submodule(layer) for layer in norm.layers]
        scale = getattr(model.get_submodule(norm.norm), "weight", None)
        if scale is None:
            return False
        linear = all(isinstance(layer, nn.Linear) and scale.shape == (layer.in_features,) for layer in layers)
        return linear and not norm.averaged and not set(norm.layers) & set(ends)

    return sorted(filter(fits, norms), key=lambda norm: order[norm.norm])


@torch.no_grad()
def equalize_attention(
    model: nn.Module, attentions: list[PlainAttention], batches: list[Tensor], centre: bool = False
) -> None:
    """Give query and key the same range in every channel, and all channels of value one range.

    Only the product of query and key counts, and value's factors are undone by the output projection's weight.

    Args:
        centre: also move the middle of key's and value's ranges to zero. What is taken from every key changes all
            scores of a query alike, which softmax does not see; what is taken from every value is added by the output
            projection's bias, for probabilities sum to 1.
    """
    projections = {part.layer for found in attentions for part in (found.query, found.key, found.value)}
    ranges = _ranges(model, dict.fromkeys(sorted(projections), -1), batches)
    for found in attentions:
        _equalize(model, found, ranges, centre)


def _equalize(model: nn.Module, found: PlainAttention, ranges: dict[str, "_Range"], centre: bool) -> None:
    rows = [part.channels.flatten() for part in (found.query, found.key, found.value)]
    layers: list[Any] = [model.get_submodule(part.layer) for part in (found.query, found.key, found.value)]
    low_high = [ranges[part.layer].of(chosen) for part, chosen in zip(_parts(found), rows, strict=True)]
    middles = [part.middle * float(centre) for part in low_high]
    middles[0] = torch.zeros_like(middles[0])
    output, columns = model.get_submodule(found.output.layer), found.output.channels.flatten()
    weight = output.get_parameter("weight")
    if any(bool(middle.any()) for middle in middles):
        for layer, chosen, middle in zip(layers, rows, middles, strict=True):
            add_to_bias(layer, torch.zeros(len(layer.get_parameter("weight"))).to(middle).index_put((chosen,), -middle))
        add_to_bias(output, weight[:, columns] @ middles[2])
    query, key, value = (_factors(part.extent_about(m)) for part, m in zip(low_high, middles, strict=True))
    balance = (query / key).sqrt()
    for layer, chosen, factors in zip(layers, rows, (balance, 1 / balance, value), strict=True):
        layer.get_parameter("weight")[chosen] /= factors[:, None]
        if layer.bias is not None:
            layer.bias[chosen] /= factors
    weight[:, columns] *= value


def _parts(found: PlainAttention) -> tuple[Projection, ...]:
    return found.query, found.key, found.value


@dataclass(frozen=True)
class _Range:
    """The smallest and the largest value of each channel."""

    low: Float[Tensor, " channels"]
    high: Float[Tensor, " channels"]

    def of(self, chosen: Int[Tensor, " chosen"]) -> "_Range":
        """That of some channels, in their order."""
        return _Range(self.low[chosen], self.high[chosen])

    @property
    def middle(self) -> Float[Tensor, " channels"]:
        return (self.low + self.high) / 2

    def extent_about(self, middle: Float[Tensor, " channels"]) -> Float[Tensor, " channels"]:
        """The largest distance from ``middle``."""
        return torch.maximum(self.high - middle, middle - self.low)


@torch.no_grad()
def _ranges(model: nn.Module, names: dict[str, int], batches: list[Tensor]) -> dict[str, _Range]:
    """Of each module's output, over all batches.

    Args:
        names: module → the axis of its channels.
    """
    seen: dict[str, _Range] = {}

    def watch(name: str, output: Tensor) -> None:
        rows = output.movedim(names[name], -1).flatten(0, -2)
        now = _Range(rows.amin(0), rows.amax(0))
        before = seen.get(name, now)
        seen[name] = _Range(torch.minimum(now.low, before.low), torch.maximum(now.high, before.high))

    handles = [
        model.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: watch(name, output))
        for name in names
    ]
    try:
        for batch in batches:
            run(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _factors(extent: Float[Tensor, " channels"]) -> Float[Tensor, " channels"]:
    """Proportional to ``extent``, with geometric mean 1."""
    extent = extent.float().clamp(min=max(_SMALLEST * float(extent.max()), torch.finfo(torch.float32).tiny))
    return extent / extent.log().mean().exp()

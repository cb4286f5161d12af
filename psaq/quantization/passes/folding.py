"""Rescaling a model so that it computes the same but quantises better; nothing of it is left at run time."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from timm.layers import RmsNorm
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from psaq.quantization.model.layers import add_to_bias
from psaq.quantization.model.neighbours import fills_its_windows, normalised_inputs, plain_attention

_SMALLEST = 1e-5  # of the largest: a channel that is always zero keeps a factor


def fold_norms(model: nn.Module, batches: list[Tensor], strength: float, centre: bool = False) -> None:
    """Divide each LayerNorm's channels by factors that the next weight is multiplied with.

    The factors are (max|y| per channel)^strength, with geometric mean 1: at 1 all channels of the LayerNorm's output
    have one range (RepQ-ViT: Li et al. 2023), and the weight takes all of the spread; between 0 and 1 they share it
    (SmoothQuant: Xiao et al. 2023).

    Args:
        centre: first subtract from each channel the middle of its range; the next bias makes up for it.
    """
    pairs = list(_foldable(model))
    ranges = _ranges([norm for norm, _, _ in pairs], model, batches)
    for (norm, linear, movable), channels in zip(pairs, ranges, strict=True):
        middle = channels.middle * float(centre and movable)
        if middle.any():
            norm.bias.data -= middle
            add_to_bias(linear, linear.weight.data @ middle)
        factors = _factors(channels.extent_about(middle)).pow(strength)
        norm.weight.data /= factors
        if isinstance(norm, nn.LayerNorm) and norm.bias is not None:
            norm.bias.data /= factors
        linear.weight.data *= factors


def equalize_attention(model: nn.Module, batches: list[Tensor], centre: bool = False) -> None:
    """Give query and key the same range in every channel, and all channels of value one range.

    Only the product of query and key counts, and value's factors are undone by the output projection's weight.

    Args:
        centre: also move the middle of key's and value's ranges to zero. What is taken from every key changes all
            scores of a query alike, which softmax does not see; what is taken from every value is added by the output
            projection's bias, for probabilities sum to 1.
    """
    layers = list(plain_attention(model))
    ranges = _ranges([layer.get_submodule("qkv") for layer in layers], model, batches)
    for layer, channels in zip(layers, ranges, strict=True):
        qkv, proj = layer.get_submodule("qkv"), layer.get_submodule("proj")
        assert isinstance(qkv, nn.Linear)
        assert isinstance(proj, nn.Linear)
        middle = channels.middle * float(centre)
        middle[: len(middle) // 3] = 0
        _move(qkv, proj, middle)
        _equalize(qkv, proj, channels.extent_about(middle))


def _move(qkv: nn.Linear, proj: nn.Linear, middle: Float[Tensor, " qkv"]) -> None:
    if middle.any():
        add_to_bias(qkv, -middle)
        add_to_bias(proj, proj.weight.data @ middle.chunk(3)[2])


def _equalize(qkv: nn.Linear, proj: nn.Linear, extent: Float[Tensor, " qkv"]) -> None:
    query, key, value = (_factors(part) for part in extent.chunk(3))
    balance = (query / key).sqrt()
    factors = torch.cat([balance, 1 / balance, value])
    qkv.weight.data /= factors[:, None]
    if qkv.bias is not None:
        qkv.bias.data /= factors
    proj.weight.data *= value


def _foldable(model: nn.Module) -> Iterator[tuple[nn.LayerNorm | RmsNorm, nn.Linear, bool]]:
    """Norm, the linear layer behind it, and whether an offset may move from one to the other."""
    for parent, name, linear in normalised_inputs(model):
        norm = parent.get_submodule(name)
        if isinstance(norm, nn.LayerNorm | RmsNorm) and norm.weight is not None and isinstance(linear, nn.Linear):
            padded = isinstance(parent, SwinTransformerBlock) and name == "norm1" and not fills_its_windows(parent)
            yield norm, linear, isinstance(norm, nn.LayerNorm) and norm.bias is not None and not padded


@dataclass(frozen=True)
class _Range:
    """The smallest and the largest value of each channel."""

    low: Float[Tensor, " channels"]
    high: Float[Tensor, " channels"]

    @property
    def middle(self) -> Float[Tensor, " channels"]:
        return (self.low + self.high) / 2

    def extent_about(self, middle: Float[Tensor, " channels"]) -> Float[Tensor, " channels"]:
        """The largest distance from ``middle``."""
        return torch.maximum(self.high - middle, middle - self.low)


@torch.no_grad()
def _ranges(modules: list[nn.Module], model: nn.Module, batches: list[Tensor]) -> list[_Range]:
    """Of each module's output, over all batches."""
    seen: dict[nn.Module, _Range] = {}

    def watch(module: nn.Module, _: object, output: Tensor) -> None:
        rows = output.flatten(0, -2)
        now = _Range(rows.amin(0), rows.amax(0))
        before = seen.get(module, now)
        seen[module] = _Range(torch.minimum(now.low, before.low), torch.maximum(now.high, before.high))

    handles = [module.register_forward_hook(watch) for module in modules]
    try:
        for batch in batches:
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return [seen[module] for module in modules]


def _factors(extent: Float[Tensor, " channels"]) -> Float[Tensor, " channels"]:
    """Proportional to ``extent``, with geometric mean 1."""
    extent = extent.float().clamp(min=max(_SMALLEST * float(extent.max()), torch.finfo(torch.float32).tiny))
    return extent / extent.log().mean().exp()

"""Rescaling a model so that it computes the same but quantises better; nothing of it is left at run time."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from timm.layers import RmsNorm
from timm.models.swin_transformer import WindowAttention
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from psaq.quantization.neighbours import normalised_inputs

_SMALLEST = 1e-5  # of the largest: a channel that is always zero keeps a factor


def fold_norms(model: nn.Module, batches: list[Tensor], strength: float) -> None:
    """Divide each LayerNorm's channels by factors that the next weight is multiplied with.

    The factors are (max|y| per channel)^strength, with geometric mean 1: at 1 all channels of the LayerNorm's output
    have one range (RepQ-ViT: Li et al. 2023), and the weight takes all of the spread; between 0 and 1 they share it
    (SmoothQuant: Xiao et al. 2023).
    """
    pairs = list(_foldable(model))
    extents = _extents([norm for norm, _ in pairs], model, batches)
    for (norm, linear), extent in zip(pairs, extents, strict=True):
        factors = _factors(extent).pow(strength)
        norm.weight.data /= factors
        if isinstance(norm, nn.LayerNorm) and norm.bias is not None:
            norm.bias.data /= factors
        linear.weight.data *= factors


def equalize_attention(model: nn.Module, batches: list[Tensor]) -> None:
    """Give query and key the same range in every channel, and all channels of value one range.

    Only the product of query and key counts, and value's factors are undone by the output projection's weight.
    """
    layers = [module for module in model.modules() if _is_plain_attention(module)]
    extents = _extents([layer.get_submodule("qkv") for layer in layers], model, batches)
    for layer, extent in zip(layers, extents, strict=True):
        qkv, proj = layer.get_submodule("qkv"), layer.get_submodule("proj")
        assert isinstance(qkv, nn.Linear)
        assert isinstance(proj, nn.Linear)
        _equalize(qkv, proj, extent)


def _equalize(qkv: nn.Linear, proj: nn.Linear, extent: Float[Tensor, " qkv"]) -> None:
    query, key, value = (_factors(part) for part in extent.chunk(3))
    balance = (query / key).sqrt()
    factors = torch.cat([balance, 1 / balance, value])
    qkv.weight.data /= factors[:, None]
    if qkv.bias is not None:
        qkv.bias.data /= factors
    proj.weight.data *= value


def _foldable(model: nn.Module) -> Iterator[tuple[nn.LayerNorm | RmsNorm, nn.Linear]]:
    for parent, name, linear in normalised_inputs(model):
        norm = parent.get_submodule(name)
        if isinstance(norm, nn.LayerNorm | RmsNorm) and norm.weight is not None and isinstance(linear, nn.Linear):
            yield norm, linear


def _is_plain_attention(module: nn.Module) -> bool:
    """Whether nothing stands between qkv and the products, nor between them and the output projection."""
    if not isinstance(module, Attention | WindowAttention):
        return False
    between = (getattr(module, name, None) for name in ("q_norm", "k_norm", "norm", "gate"))
    return all(part is None or isinstance(part, nn.Identity) for part in between)


@torch.no_grad()
def _extents(modules: list[nn.Module], model: nn.Module, batches: list[Tensor]) -> list[Float[Tensor, " channels"]]:
    """max|output| per channel of each module over all batches."""
    seen: dict[nn.Module, Tensor] = {}

    def watch(module: nn.Module, _: object, output: Tensor) -> None:
        extent = output.flatten(0, -2).abs().amax(0)
        seen[module] = torch.maximum(extent, seen.get(module, extent))

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

"""Where patch features come from: attention·V of every block, before the output projection."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn

from psaq.errors import PsaqError

Heads = Literal["mean", "separate"]
"""Heads averaged into one feature per patch (the authors' way), or kept apart."""

Features = Float[Tensor, "images windows patches channels"]


def attention_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The self-attention modules of a vision transformer by name, in the order of its blocks.

    Raises:
        PsaqError: the model has none.
    """
    layers = {name: module for name, module in model.named_modules() if _is_self_attention(module)}
    if not layers:
        raise PsaqError(
            f"{type(model).__name__}: has no self-attention blocks; psaq needs a ViT, DeiT or Swin as timm builds them"
        )
    return layers


class PatchFeatureRecorder:
    """Collects the patch features of a model's latest forward pass, one tensor per block.

    With ``class_token="drop"`` the tokens that are no patches (class, distillation, register) are left out, where
    a model has them. ``"reference"`` drops the first token of every model, as the authors' code does: for Swin,
    which has no class token, that loses a patch of each window.
    """

    def __init__(self, model: nn.Module, heads: Heads, class_token: Literal["drop", "reference"] = "drop"):
        self.features: list[Features] = []
        self._images = 0
        self._heads = heads
        self._layers = attention_layers(model)
        self._leading_tokens = getattr(model, "num_prefix_tokens", 0) if class_token == "drop" else 1

    def attach(self, model: nn.Module) -> Iterator[torch.utils.hooks.RemovableHandle]:
        yield model.register_forward_pre_hook(self._start)
        for layer in self._layers.values():
            yield layer.proj.register_forward_pre_hook(  # type: ignore[union-attr]
                lambda _, inputs, heads=layer.num_heads: self._record(inputs[0], heads)
            )

    def _start(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._images = inputs[0].shape[0]
        self.features = []

    def _record(self, attended: Float[Tensor, "rows tokens dim"], heads: int) -> None:
        if attended.ndim != 3:
            raise PsaqError(f"attention of shape {tuple(attended.shape)}: expected (rows, tokens, channels)")
        patches = attended[:, self._leading_tokens :]
        self.features.append(_split_heads(patches, self._images, heads, self._heads))


@contextmanager
def record_patch_features(
    model: nn.Module, heads: Heads = "mean", class_token: Literal["drop", "reference"] = "drop"
) -> Iterator[PatchFeatureRecorder]:
    """Record patch features while the block is open; the hooks go when it closes, also on an error.

    Raises:
        PsaqError: the model has no self-attention blocks.
    """
    recorder = PatchFeatureRecorder(model, heads, class_token)
    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        handles.extend(recorder.attach(model))
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


def patch_features(
    model: nn.Module, images: Float[Tensor, "images 3 height width"], heads: Heads = "mean"
) -> list[Features]:
    """The patch features u of every block: its self-attention's output (Li et al. 2022, eq. 1).

    Returns:
        One tensor per block, (images, windows, patches, channels): one window for ViT and DeiT, Swin's windows
        pooled per image. ``heads="separate"`` counts each head as a window of its own.

    Raises:
        PsaqError: the model has no self-attention blocks.
    """
    with record_patch_features(model, heads) as recorder:
        model(images)
    return recorder.features


def _is_self_attention(module: nn.Module) -> bool:
    has_query = any(getattr(module, name, None) is not None for name in ("qkv", "q_proj"))
    return has_query and isinstance(getattr(module, "num_heads", None), int) and hasattr(module, "proj")


def _split_heads(patches: Float[Tensor, "rows patches dim"], images: int, heads: int, how: Heads) -> Features:
    if how == "separate":
        return rearrange(patches, "(i w) p (h c) -> i (h w) p c", i=images, h=heads)
    return reduce(patches, "(i w) p (h c) -> i w p c", "mean", i=images, h=heads)

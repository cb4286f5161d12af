"""Fused attention as the few operators that runtimes know how to fuse again."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode


class PlainAttention(TorchFunctionMode):
    """While a model is traced: scores, softmax and product in place of each fused attention, the scale a constant.

    The exporter's own form computes the scale from shapes, and takes its root twice.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        plain = function is F.scaled_dot_product_attention and _is_plain(*args, **kwargs)
        return _attention(*args, **kwargs) if plain else function(*args, **kwargs)


def _is_plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    enable_gqa: bool = False,
    **_: Any,
) -> bool:
    floats = attn_mask is None or attn_mask.is_floating_point()
    return floats and dropout_p == 0 and not is_causal and not enable_gqa and query.ndim >= 3


def _attention(
    query: Float[Tensor, "*batch queries channels"],
    key: Float[Tensor, "*batch keys channels"],
    value: Float[Tensor, "*batch keys values"],
    attn_mask: Float[Tensor, "..."] | None = None,
    scale: float | None = None,
    **_: Any,
) -> Float[Tensor, "*batch queries values"]:
    factor = 1 / math.sqrt(int(query.shape[-1])) if scale is None else scale
    scores = (query * factor) @ key.transpose(-2, -1)
    scores = scores if attn_mask is None else scores + attn_mask
    return torch.softmax(scores, dim=-1) @ value

"""Fused attention written out as products and a softmax, for those who compute that faster: other runtimes, and some
processors."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

_SCORES_AT_ONCE = 2**21
"""In bfloat16 they stay in the caches of one or two cores."""


class WrittenOut(TorchFunctionMode):
    """While entered, each fused attention is computed by ``form``, which answers None to calls that it leaves."""

    def __init__(self, form: Callable[..., Tensor | None]):
        super().__init__()
        self.form = form

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        attended = self.form(*args, **kwargs) if function is F.scaled_dot_product_attention else None
        return function(*args, **kwargs) if attended is None else attended


def whole(
    query: Float[Tensor, "*batch queries channels"],
    key: Float[Tensor, "*batch keys channels"],
    value: Float[Tensor, "*batch keys values"],
    attn_mask: Float[Tensor, "..."] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "*batch queries values"] | None:
    """The few operators that runtimes know how to fuse again, the scale a constant.

    torch's exporter computes the scale from shapes, and takes its root twice.
    """
    masked = attn_mask is not None and not attn_mask.is_floating_point()
    if masked or dropout_p or is_causal or enable_gqa or query.ndim < 3:
        return None
    scores = (query * _factor(query, scale)) @ key.transpose(-2, -1)
    scores = scores if attn_mask is None else scores + attn_mask
    return torch.softmax(scores, dim=-1) @ value


def in_chunks(
    query: Float[Tensor, "*batch queries channels"],
    key: Float[Tensor, "*batch keys channels"],
    value: Float[Tensor, "*batch keys values"],
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "*batch queries values"] | None:
    """oneDNN's products of bfloat16, of as many heads at once as leave their scores in the caches."""
    if attn_mask is not None or dropout_p or is_causal or enable_gqa or not _all_alike(query, key, value):
        return None
    *batch, queries, _ = query.shape
    keys, values = value.shape[-2:]
    at_once = _SCORES_AT_ONCE // max(queries * keys, 1)
    if not at_once:
        return None
    heads = zip(
        query.flatten(0, -3).split(at_once),
        key.flatten(0, -3).mT.split(at_once),
        value.flatten(0, -3).split(at_once),
        strict=True,
    )
    factor, nothing = _factor(query, scale), query.new_zeros(())
    attended = [torch.bmm(torch.baddbmm(nothing, q, k, beta=0, alpha=factor).softmax(-1), v) for q, k, v in heads]
    return torch.cat(attended).view(*batch, queries, values)


def _all_alike(query: Tensor, key: Tensor, value: Tensor) -> bool:
    bfloat16 = query.dtype == key.dtype == value.dtype == torch.bfloat16
    return bfloat16 and query.ndim >= 3 and query.shape[:-2] == key.shape[:-2] == value.shape[:-2]


def _factor(query: Tensor, scale: float | None) -> float:
    return 1 / math.sqrt(int(query.shape[-1])) if scale is None else scale

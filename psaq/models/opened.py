"""torch's own attention module, whose projections and products are one call of the framework, written out."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.models.copying import copied
from psaq.models.subclassed import subclassed

Tokens = Float[Tensor, "rows tokens dim"]


def open_attention(model: nn.Module) -> None:
    """Let every `nn.MultiheadAttention` call layers of its own, ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj``,
    and the framework's attention. Raises PsaqError for one with learnt keys or zero attention."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.MultiheadAttention:
            _open(name, module)
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # otherwise torch runs the whole layer as one call


def opened(model: nn.Module) -> nn.Module:
    """The model itself, or where it holds `nn.MultiheadAttention` a copy with that written out."""
    if not any(type(module) is nn.MultiheadAttention for module in model.modules()):
        return model
    written_out = copied(model)
    open_attention(written_out)
    return written_out


class OpenAttention(nn.MultiheadAttention):
    """The same attention by single calls."""

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        batched, first = query.ndim == 3, self.batch_first
        q, k, v = (self._rows_first(x) for x in (query, key, value))
        q, k, v = (
            rearrange(project(x), "b n (h d) -> b h n d", h=self.num_heads)
            for project, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        mask = self._mask(attn_mask, key_padding_mask, q)
        if need_weights:
            weights = self._scores(q, k, mask).softmax(-1)
            attended = weights @ v
        else:
            weights, attended = None, F.scaled_dot_product_attention(q, k, v, mask)
        output = self.out_proj(rearrange(attended, "b h n d -> b n (h d)"))
        output = output if first or not batched else output.transpose(0, 1)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        return (output, weights) if batched else (output[0], None if weights is None else weights[0])

    def _rows_first(self, x: Tensor) -> Tokens:
        if x.ndim == 2:
            return x[None]
        return x if self.batch_first else x.transpose(0, 1)

    def _scores(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
        return scores if mask is None else scores + mask

    def _mask(self, attn_mask: Tensor | None, padding: Tensor | None, like: Tensor) -> Tensor | None:
        """What is added to the scores, (rows, heads, queries, keys) or broadcast to that."""
        masks = []
        if attn_mask is not None:
            attn_mask = _added(attn_mask, like)
            split = attn_mask.ndim == 3
            masks.append(rearrange(attn_mask, "(b h) q k -> b h q k", h=self.num_heads) if split else attn_mask)
        if padding is not None:
            masks.append(rearrange(_added(padding, like), "... k -> (...) 1 1 k"))
        return sum(masks[1:], start=masks[0]) if masks else None

    @property
    def in_proj_weight(self) -> Tensor:  # type: ignore[override]
        """The three projections' weights as torch keeps them."""
        return torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])

    @property
    def in_proj_bias(self) -> Tensor | None:  # type: ignore[override]
        """Their biases likewise."""
        biases: list[Tensor] = [
            bias for layer in (self.q_proj, self.k_proj, self.v_proj) if (bias := layer.bias) is not None
        ]
        return torch.cat(biases) if biases else None

    def _reset_parameters(self) -> None:
        """Its layers are initialised like any other."""


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """A mask whose true places are blocked, as numbers to add."""
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else mask


def _open(name: str, module: nn.MultiheadAttention) -> None:
    if module.bias_k is not None or module.add_zero_attn:
        raise PsaqError(f"{name}: psaq cannot quantise a MultiheadAttention with add_bias_kv or add_zero_attn")
    projections = dict(_projections(module))
    for parameter in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias"):
        module._parameters.pop(parameter, None)
    subclassed(module, OpenAttention)
    for projection, linear in projections.items():
        module.add_module(projection, linear)


def _projections(module: nn.MultiheadAttention) -> Iterator[tuple[str, nn.Linear]]:
    if module.in_proj_weight is not None:
        weights = module.in_proj_weight.chunk(3)
    else:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    for projection, weight, bias in zip(("q_proj", "k_proj", "v_proj"), weights, biases, strict=True):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None).to(weight)
        linear.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
        if bias is not None:
            linear.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
        yield projection, linear

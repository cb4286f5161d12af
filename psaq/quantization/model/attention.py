"""timm's attention modules written out, so that every operand of their matrix products can be quantised."""

from einops import rearrange
from jaxtyping import Float
from timm.layers import AttentionPoolLatent
from timm.models.swin_transformer import WindowAttention
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.quantization.model.points import Quantized

Heads = Float[Tensor, "rows heads tokens channels"]
Scores = Float[Tensor, "rows heads queries keys"]

_OPERANDS = ("query", "key", "value", "scores", "probabilities")


class QuantAttention(Quantized, Attention):
    """Multi-head self-attention of a ViT. While no point inside is live, timm's own forward runs, fused or not."""

    points = _OPERANDS

    def forward(self, x: Float[Tensor, "images tokens dim"], *mask: Tensor, **masks: object) -> Tensor:
        if not self.any_live(*self.points):
            return super().forward(x, *mask, **masks)
        _refuse_masks(self, (*mask, *masks.values()))
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        q, k = self.q_norm(q), self.k_norm(k)
        attended = _attend(self, self.scores(_scaled_scores(self, q, k)), v)
        return self._project(rearrange(attended, "b h n d -> b n (h d)"), x)

    def _project(self, attended: Tensor, x: Tensor) -> Tensor:
        normalise, gate = _optional(self, "norm"), _optional(self, "gate")
        attended = normalise(attended) if normalise else attended
        attended = attended * gate(x).sigmoid() if gate else attended
        return self.proj_drop(self.proj(attended))


class QuantWindowAttention(Quantized, WindowAttention):
    """Self-attention inside the windows of a Swin, with its relative position bias."""

    points = (*_OPERANDS, "bias_table", "biased_scores")

    def forward(
        self, x: Float[Tensor, "rows tokens dim"], mask: Float[Tensor, "windows tokens tokens"] | None = None
    ) -> Tensor:
        if not self.any_live(*self.points):
            return super().forward(x, mask=mask)
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        scores = self.scores(_scaled_scores(self, q, k))
        scores = self.biased_scores(scores + self._quantised_bias())
        if mask is not None:
            scores = _add_window_mask(scores, mask)
        attended = rearrange(_attend(self, scores, v), "b h n d -> b n (h d)")
        return self.proj_drop(self.proj(attended))

    def _quantised_bias(self) -> Float[Tensor, "heads tokens tokens"]:
        table = self.bias_table(self.relative_position_bias_table)
        bias = table[self.relative_position_index.flatten()]
        return rearrange(bias, "(q k) h -> h q k", q=self.window_area)


class QuantAttentionPoolLatent(Quantized, AttentionPoolLatent):
    """Pooling by a learnt query that attends to all tokens (global_pool="map")."""

    points = _OPERANDS

    def forward(self, x: Float[Tensor, "images tokens dim"], *mask: Tensor, **masks: object) -> Tensor:
        if not self.any_live(*self.points):
            return super().forward(x, *mask, **masks)
        _refuse_masks(self, (*mask, *masks.values()))
        x = x if self.pos_embed is None else x + self.pos_embed
        latent = self.latent.expand(x.shape[0], -1, -1)
        q = rearrange(self.q(latent), "b n (h d) -> b h n d", h=self.num_heads)
        k, v = rearrange(self.kv(x), "b n (two h d) -> two b h n d", two=2, h=self.num_heads)
        scores = self.scores(_scaled_scores(self, self.q_norm(q), self.k_norm(k)))
        pooled = self.proj_drop(self.proj(rearrange(_attend(self, scores, v), "b h n d -> b n (h d)")))
        if self.mlp is not None:
            pooled = pooled + self.mlp(self.norm(pooled))
        return {"token": lambda y: y[:, 0], "avg": lambda y: y.mean(1)}.get(self.pool, lambda y: y)(pooled)


def _scaled_scores(attention: Quantized, q: Heads, k: Heads) -> Scores:
    return attention.query(q) @ attention.key(k).transpose(-2, -1) * attention.scale


def _attend(attention: Quantized, scores: Scores, v: Heads) -> Heads:
    probabilities = scores.softmax(-1)
    drop = _optional(attention, "attn_drop")
    probabilities = drop(probabilities) if drop else probabilities
    return attention.probabilities(probabilities) @ attention.value(v)


def _add_window_mask(scores: Scores, mask: Float[Tensor, "windows tokens tokens"]) -> Scores:
    by_window = rearrange(scores, "(b w) h q k -> b w h q k", w=len(mask)) + mask[:, None]
    return rearrange(by_window, "b w h q k -> (b w) h q k")


def _optional(module: nn.Module, name: str) -> nn.Module | None:
    """A part that not every version and variant of the module has."""
    return getattr(module, name, None)


def _refuse_masks(module: nn.Module, masks: tuple[object, ...]) -> None:
    if any(mask is not None and mask is not False for mask in masks):
        raise PsaqError(f"{type(module).__name__}: a quantised model takes whole images; call it without a mask")

"""Vision transformers (ViT and DeiT) with the points that lie outside of their layers."""

import torch
from jaxtyping import Float
from timm.layers import resample_abs_pos_embed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import Tensor

from psaq.quantization.model.points import Quantized

Tokens = Float[Tensor, "images tokens dim"]


class QuantBlock(Quantized, Block):
    """A transformer block with a point after each residual sum."""

    points = ("residual1", "residual2")

    def forward(self, x: Tokens, **masks: object) -> Tokens:
        x = self.residual1(x + self.drop_path1(self.ls1(self.attn(self.norm1(x), **masks))))
        return self.residual2(x + self.drop_path2(self.ls2(self.mlp(self.norm2(x)))))


class QuantResPostBlock(Quantized, ResPostBlock):
    """A transformer block that normalises after each branch, with a point after each residual sum."""

    points = ("residual1", "residual2")

    def forward(self, x: Tokens, **masks: object) -> Tokens:
        x = self.residual1(x + self.drop_path1(self.norm1(self.attn(x, **masks))))
        return self.residual2(x + self.drop_path2(self.norm2(self.mlp(x))))


class QuantVisionTransformer(Quantized, VisionTransformer):
    """A ViT with points where patches, prefix tokens and position embedding come together."""

    points = ("tokens", "position_embedding", "embedded")

    def point_names(self) -> tuple[str, ...]:
        if self.pos_embed is None:
            return ()
        return self.points if self._prefix_tokens() else ("position_embedding", "embedded")

    def _pos_embed(self, x: Float[Tensor, "images ... dim"]) -> Tokens:
        if self.pos_embed is None:
            return super()._pos_embed(x)
        position = self.position_embedding(self._position_for(x.shape[1:3]))
        x = x.flatten(1, -2)
        if self.no_embed_class:
            x = self._join_prefix(self.embedded(x + position))
        else:
            x = self.embedded(self._join_prefix(x) + position)
        return self.pos_drop(x)

    def _position_for(self, grid: torch.Size) -> Tokens:
        if not self.dynamic_img_size:
            return self.pos_embed
        prefix = 0 if self.no_embed_class else self.num_prefix_tokens
        return resample_abs_pos_embed(
            self.pos_embed, new_size=grid, old_size=self.patch_embed.grid_size, num_prefix_tokens=prefix
        )

    def _join_prefix(self, patches: Tokens) -> Tokens:
        prefix = [token.expand(patches.shape[0], -1, -1) for token in self._prefix_tokens()]
        return self.tokens(torch.cat([*prefix, patches], dim=1)) if prefix else patches

    def _prefix_tokens(self) -> list[Tensor]:
        tokens = (getattr(self, name, None) for name in ("cls_token", "dist_token", "reg_token"))
        return [token for token in tokens if token is not None]


class QuantVisionTransformerDistilled(QuantVisionTransformer, VisionTransformerDistilled):
    """A DeiT with a distillation token and the head that reads it."""

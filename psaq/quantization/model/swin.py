"""Swin transformers with the points that lie outside of their layers."""

from jaxtyping import Float
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from torch import Tensor

from psaq.quantization.model.points import Quantized

Grid = Float[Tensor, "images rows columns dim"]


class QuantSwinBlock(Quantized, SwinTransformerBlock):
    """A Swin block with a point after each residual sum."""

    points = ("residual1", "residual2")

    def forward(self, x: Grid) -> Grid:
        x = self.residual1(x + self.drop_path1(self._attn(self.norm1(x))))
        return self.residual2(x + self.drop_path2(self.mlp(self.norm2(x))))


class QuantSwinTransformer(Quantized, SwinTransformer):
    """A Swin with a point after the patch embedding's norm and one after the last norm."""

    points = ("embedded", "features")

    def forward_features(self, x: Float[Tensor, "images 3 height width"]) -> Grid:
        return self.features(self.norm(self.layers(self.embedded(self.patch_embed(x)))))

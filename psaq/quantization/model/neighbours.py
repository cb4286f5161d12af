"""What stands beside what: norms, linear layers, products of attention."""

from collections.abc import Iterator

from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock, WindowAttention
from timm.models.vision_transformer import Attention, Block
from torch import nn


def normalised_inputs(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module | None]]:
    """Where a norm's output goes into one linear layer and nowhere else: (parent, norm's name, linear)."""
    for module in model.modules():
        if isinstance(module, Block | SwinTransformerBlock):
            if getattr(module.attn, "gate", None) is None:
                yield module, "norm1", getattr(module.attn, "qkv", None)
            yield module, "norm2", getattr(module.mlp, "fc1", None)
        if isinstance(module, PatchMerging):
            yield module, "norm", module.reduction


def fills_its_windows(block: SwinTransformerBlock) -> bool:
    """Whether no window is padded with zeros behind the norm, which stand for 0.0 whatever was folded into it."""
    fixed = not getattr(block, "dynamic_mask", False)
    return fixed and all(size % side == 0 for size, side in zip(block.input_resolution, block.window_size, strict=True))


def plain_attention(model: nn.Module) -> Iterator[Attention | WindowAttention]:
    """Attention where nothing stands between qkv and the products, nor between them and the output projection."""
    for module in model.modules():
        if isinstance(module, Attention | WindowAttention):
            between = (getattr(module, name, None) for name in ("q_norm", "k_norm", "norm", "gate"))
            if all(part is None or isinstance(part, nn.Identity) for part in between):
                yield module

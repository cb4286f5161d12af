"""Every kind of vision transformer that psaq walks, small and untrained."""

import timm
import torch
from torch import nn

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 7}
SWIN = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 2)}

VARIANTS = {
    "class token": ("vit_tiny_patch16_224", VIT),
    "distilled": ("deit_tiny_distilled_patch16_224", VIT),
    "distilled, unused norm": ("deit_tiny_distilled_patch16_224", {**VIT, "fc_norm": True}),
    "mean pooling": ("vit_tiny_patch16_224", {**VIT, "global_pool": "avg", "class_token": False}),
    "registers": ("vit_tiny_patch16_224", {**VIT, "reg_tokens": 4, "no_embed_class": True}),
    "attention pooling": ("vit_tiny_patch16_224", {**VIT, "class_token": False, "global_pool": "map"}),
    "layer scale, query-key norm": ("vit_tiny_patch16_224", {**VIT, "init_values": 0.1, "qk_norm": True}),
    "attention and MLP norm": ("vit_tiny_patch16_224", {**VIT, "scale_attn_norm": True, "scale_mlp_norm": True}),
    "any image size": ("vit_tiny_patch16_224", {**VIT, "dynamic_img_size": True}),
    "norm before": ("vit_tiny_patch16_224", {**VIT, "pre_norm": True}),
    "norm after": ("vit_tiny_patch16_224", {**VIT, "block_fn": timm.models.vision_transformer.ResPostBlock}),
    "no position": ("vit_tiny_patch16_224", {**VIT, "pos_embed": "none"}),
    "gated MLP": ("vit_tiny_patch16_224", {**VIT, "mlp_layer": timm.layers.SwiGLU}),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
    "swin, padded windows": ("swin_tiny_patch4_window7_224", {**SWIN, "img_size": 20, "always_partition": True}),
}


def build(variant: str) -> nn.Module:
    torch.manual_seed(0)
    name, options = VARIANTS[variant]
    model = timm.create_model(name, **options).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 0.5, 0.3)
        if parameter_name.endswith(("qkv.weight", "q.weight", "kv.weight")):
            parameter.data.mul_(10)
    return model


def images_for(variant: str) -> torch.Tensor:
    size = VARIANTS[variant][1]["img_size"]
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))

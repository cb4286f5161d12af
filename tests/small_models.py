"""Small untrained models: a ViT and a Swin that tests everywhere may build."""

import timm
import torch
from torch import nn


def small_vit(**options: object) -> nn.Module:
    torch.manual_seed(0)
    defaults = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 10}
    return _attentive(timm.create_model("vit_tiny_patch16_224", **{**defaults, **options}))


def small_swin(**options: object) -> nn.Module:
    torch.manual_seed(0)
    defaults = {
        "img_size": 32,
        "patch_size": 2,
        "window_size": 4,
        "embed_dim": 24,
        "depths": (2, 2),
        "num_heads": (2, 4),
        "num_classes": 10,
    }
    return _attentive(timm.create_model("swin_tiny_patch4_window7_224", **{**defaults, **options}))


def _attentive(model: nn.Module) -> nn.Module:
    """Fresh weights attend to all patches alike; larger queries and keys make attention depend on the image."""
    for name, parameter in model.named_parameters():
        if name.endswith("qkv.weight"):
            parameter.data.mul_(10)
    return model.eval()

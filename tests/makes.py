"""Vision transformers of every make, tiny and untrained: timm's, transformers', torchvision's, and one's own."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from psaq.experiments.architectures import awake
from psaq.models.description import describe

SIDE = 32


class Own(nn.Module):
    """A transformer of one block as a user may write it, its attention in one of many ways."""

    num_classes = 5
    image_size = SIDE

    def __init__(self, attention: str, channels: int = 3):
        super().__init__()
        self.attention = attention
        self.embed = nn.Conv2d(channels, 32, 8, 8)
        self.position = nn.Parameter(0.1 * torch.randn(1, 16, 32))
        self.norm = nn.LayerNorm(32)
        if attention in ("module", "module without weights"):
            self.mixer: nn.Module = nn.MultiheadAttention(32, 2, batch_first=True)
        elif attention == "encoder layer":
            self.mixer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, activation="gelu")
        else:
            self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)
        if attention == "bare weight":
            self.mixing = nn.Parameter(0.2 * torch.randn(32, 32))
        self.head = nn.Linear(32, self.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2) + self.position
        return self.head(self.mixed(x).mean(1))

    def mixed(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        if self.attention == "module":
            return x + self.mixer(y, y, y)[0]
        if self.attention == "module without weights":
            return x + self.mixer(y, y, y, need_weights=False)[0]
        if self.attention == "encoder layer":
            return self.mixer(x)
        q, k, v = self.qkv(y).reshape(len(x), 16, 3, 2, 16).permute(2, 0, 3, 1, 4)
        attended = self.proj(_ATTENTION[self.attention](q, k, v).transpose(1, 2).reshape(len(x), 16, 32))
        return x + attended + (y @ self.mixing if self.attention == "bare weight" else 0)


def _products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(torch.matmul(q, k.transpose(-1, -2)) / 4, -1) @ v


def _sums(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bhqk,bhkd->bhqd", (torch.einsum("bhqd,bhkd->bhqk", q, k) / 4).softmax(-1), v)


def _windows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Rows of patches as windows, on an axis of their own beside that of the heads."""
    return F.scaled_dot_product_attention(*(x.unflatten(2, (4, 4)) for x in (q, k, v))).flatten(2, 3)


_ATTENTION: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "fused": F.scaled_dot_product_attention,
    "bare weight": F.scaled_dot_product_attention,
    "windows": _windows,
    "products": _products,
    "einsum": _sums,
    "linear": lambda q, k, v: q.relu() @ (k.relu().transpose(-1, -2) @ v),
}
OWN = (*_ATTENTION, "module", "module without weights", "encoder layer")

_VIT = {"img_size": SIDE, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
_SWIN = {"img_size": SIDE, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 2), "num_classes": 5}
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "beit": ("beit_base_patch16_224", _VIT),
    "cait": ("cait_xxs24_224", {**_VIT, "depth": 1}),
    "convit": ("convit_tiny", {**_VIT, "local_up_to_layer": 1}),
    "eva": ("eva02_tiny_patch14_224", _VIT),
    "mobilevitv2": ("mobilevitv2_050", {"num_classes": 5}),
    "swin v2": ("swinv2_tiny_window8_256", {**_SWIN, "patch_size": 2}),
    "swin v2 cr": ("swinv2_cr_tiny_224", {**_SWIN, "patch_size": 2}),
    "xcit": ("xcit_nano_12_p16_224", {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}),
}

_HF = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_HF_PATCHES = {**_HF, "image_size": SIDE, "patch_size": 8}
_HF_SWIN = {"image_size": SIDE, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2]}
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ViT": ("ViTForImageClassification", "ViTConfig", {**_HF_PATCHES, "num_labels": 5}),
    "DINOv3": ("DINOv3ViTModel", "DINOv3ViTConfig", {**_HF_PATCHES, "num_register_tokens": 4}),
    "Swin V2": ("Swinv2ForImageClassification", "Swinv2Config", {**_HF_SWIN, "window_size": 4, "num_labels": 5}),
    "SegFormer": (
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        {"hidden_sizes": [8, 16, 40, 64], "depths": [1] * 4, "decoder_hidden_size": 16, "image_size": 64},
    ),
    "YOLOS": (
        "YolosForObjectDetection",
        "YolosConfig",
        {**_HF_PATCHES, "image_size": [SIDE, SIDE], "num_detection_tokens": 5, "num_labels": 3},
    ),
}


def made(make: str) -> nn.Module:
    """ "timm: beit", "transformers: ViT", "torchvision: vit" or "own: fused"."""
    torch.manual_seed(0)
    library, _, name = make.partition(": ")
    if library == "timm":
        tag, options = TIMM[name]
        model = awake(timm.create_model(tag, **options))
        return describe(model, image_size=64) if name == "mobilevitv2" else model  # it takes any size
    if library == "transformers":
        transformers = pytest.importorskip("transformers", reason="transformers is an extra")
        model, config, options = TRANSFORMERS[name]
        return awake(getattr(transformers, model)(getattr(transformers, config)(**options)))
    if library == "torchvision" and name == "vit":
        return awake(torchvision.models.VisionTransformer(SIDE, 8, 2, 2, 32, 64, num_classes=5))
    if library == "torchvision":
        swin = torchvision.models.SwinTransformer([2, 2], 16, [2, 2], [2, 2], [4, 4], num_classes=5)
        return describe(awake(swin), image_size=SIDE)
    return Own(name).eval()


MAKES = (
    *(f"timm: {name}" for name in TIMM),
    *(f"transformers: {name}" for name in TRANSFORMERS),
    "torchvision: vit",
    "torchvision: swin",
    *(f"own: {name}" for name in OWN),
)


def images_for(model: nn.Module, count: int = 3, seed: int = 1) -> Tensor:
    from psaq.models.data import data_config

    config = data_config(model)
    return torch.randn(count, config.channels, *config.image_size, generator=torch.Generator().manual_seed(seed))

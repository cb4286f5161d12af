"""Small untrained models that tests everywhere may build: a ViT, a Swin, and one that runs some of its parts twice."""

import timm
import torch
from torch import Tensor, nn


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


class RunsTwice(nn.Module):
    """A block of attention and one of fc1, GELU and fc2, some part of which a pass runs in two places."""

    num_classes, image_size = 3, 32

    def __init__(self, part: str):
        super().__init__()
        self.part = part
        self.embed, self.norm, self.act = nn.Conv2d(3, 16, 8, 8), nn.LayerNorm(16), nn.GELU()
        self.qkv, self.fc1, self.fc2, self.head = (nn.Linear(16, n) for n in (48, 16, 16, 3))
        nn.init.normal_(self.norm.weight, 1, 0.5)
        nn.init.normal_(self.norm.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).mT
        for _ in range(2 if self.part == "blocks" else 1):
            x = x + self.attended(self.qkv(self.norm(x)))
            x = x + self.fc2(self.act(self.fc1(x)))
        return self.head(x[:, 0] + x.mean(1) if self.part == "blocks" else self.again(x))

    def attended(self, qkv: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(*qkv.unflatten(-1, (3, 16)).unbind(-2))

    def again(self, x: Tensor) -> Tensor:
        match self.part:
            case "norm before a layer":
                return self.norm(x)[:, 0]
            case "norm":
                return (x + self.norm(x))[:, 0]
            case "layer behind the norm":
                return self.attended(self.qkv(x))[:, 0]
            case "activation":
                return self.act(x)[:, 0]
            case "layer before it":
                return (x + self.fc1(x))[:, 0]
            case "layer behind it":
                return (x + self.fc2(x))[:, 0]
        return x[:, 0]


def running_twice(part: str) -> nn.Module:
    torch.manual_seed(0)
    return RunsTwice(part).eval()

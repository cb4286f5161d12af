"""Images on the grid that they come on: pixels have 256 levels, which 8 bits hold without error.

A normalised image has those levels at another place and distance for each colour, and one range for all three cuts
across them: in a DeiT-Tiny at W8A8 that was the largest error of all. So the patch embedding takes the normalisation
back, and its weight takes it in.
"""

import torch
from jaxtyping import Float
from timm.layers import PatchEmbed
from torch import Tensor, nn

from psaq.images.batches import Images
from psaq.models.zoo import data_config
from psaq.quantization.keeps_types import KeepsTypes
from psaq.quantization.layers import QuantConv2d, add_to_bias

_HIGHEST = 255
_MIDDLE = 128  # stands for zero, so that sums of products stay small
RANGE = (-_MIDDLE / _HIGHEST, (_HIGHEST - _MIDDLE) / _HIGHEST)
"""Where `Pixels` puts black and white."""


class Pixels(KeepsTypes):
    """Normalised images as pixel values: x · std + mean is in [0, 1], and the middle of that becomes zero.

    Args:
        mean, std: what the images were normalised by, per channel.
    """

    std: Tensor
    offset: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        self.register_buffer("offset", torch.tensor(mean).view(-1, 1, 1) + RANGE[0])

    def forward(self, images: Images) -> Images:
        return (images * self.std + self.offset).to(images.dtype)

    def extra_repr(self) -> str:
        return "normalisation taken back per channel"


class PixelPatchEmbed(PatchEmbed):
    """A patch embedding whose convolution reads pixel values."""

    pixels: Pixels

    def forward(self, x: Images) -> Tensor:
        return super().forward(self.pixels(x))


@torch.no_grad()
def read_pixels(model: nn.Module, batches: list[Images]) -> None:
    """Let the model's patch embedding read pixel values; the logits stay.

    Nothing changes where the images reach beyond black and white as the model's own preprocessing has them (noise, or
    images that were normalised otherwise), or where the convolution pads: a zero is another colour there.
    """
    embed, config = getattr(model, "patch_embed", None), data_config(model)
    if not isinstance(embed, PatchEmbed) or not _can_read_pixels(embed, len(config.mean)):
        return
    pixels = Pixels(config.mean, config.std).to(batches[0].device)
    if all(_within_range(pixels(batch)) for batch in batches):
        _take_in(embed.proj, pixels)
        attach_pixels(embed, pixels)


def attach_pixels(embed: nn.Module, pixels: Pixels) -> None:
    """Make a patch embedding, whose weight took the normalisation in, one that reads pixel values."""
    embed.__class__ = PixelPatchEmbed
    embed.add_module("pixels", pixels)


def reads_pixels(model: nn.Module, point: str) -> bool:
    """Whether a quantisation point sees pixel values."""
    embed = getattr(model, "patch_embed", None)
    return isinstance(embed, PixelPatchEmbed) and model.get_submodule(point) is embed.proj.get_submodule("input")


def _can_read_pixels(embed: PatchEmbed, colours: int) -> bool:
    conv = embed.proj
    plain = isinstance(conv, QuantConv2d) and conv.groups == 1 and conv.in_channels == colours
    return plain and not any(conv.padding) and not embed.dynamic_img_pad


def _within_range(pixels: Images) -> bool:
    tolerance = 1 / _HIGHEST  # what a model in bfloat16 rounds a pixel by
    return bool(pixels.min() >= RANGE[0] - tolerance and pixels.max() <= RANGE[1] + tolerance)


def _take_in(conv: QuantConv2d, pixels: Pixels) -> None:
    """x = (p − offset) / std, and W x + b = (W / std) p + b − Σ W · offset / std."""
    std, offset = pixels.std.to(conv.weight.device).double(), pixels.offset.to(conv.weight.device).double()
    weight: Float[Tensor, "out 3 height width"] = conv.weight.double() / std
    conv.weight.copy_(weight)
    add_to_bias(conv, -(weight * offset).sum((1, 2, 3)))

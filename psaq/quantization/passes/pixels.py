"""Images on the grid that they come on: pixels have 256 levels, which 8 bits hold without error.

A normalised image has those levels at another place and distance for each colour, and one range for all three cuts
across them: of all points of a DeiT-Tiny at W8A8 this one cost the logits most. So the patch embedding undoes the
normalisation before it quantises, and its weight is rescaled to match.
"""

import torch
from jaxtyping import Float
from timm.layers import PatchEmbed
from torch import Tensor, nn

from psaq.images.batches import Images
from psaq.models.zoo import data_config
from psaq.quantization.model.layers import QuantConv2d, add_to_bias
from psaq.quantization.quantizers.keeps_types import KeepsTypes

PIXEL_BITS = 8
"""Fewer than these have no level for each of a pixel's: another range may be better for them."""

_HIGHEST = 2**PIXEL_BITS - 1
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
        return "undoes the normalisation of each channel"


class PixelPatchEmbed(PatchEmbed):
    """A patch embedding whose convolution reads pixel values."""

    pixels: Pixels

    def forward(self, x: Images) -> Tensor:
        return super().forward(self.pixels(x))


@torch.no_grad()
def read_pixels(model: nn.Module, batches: list[Images]) -> None:
    """Let the model's patch embedding read pixel values; the logits stay.

    Nothing changes where the model does not say what its images are normalised by, where ``batches`` reach beyond
    black and white by that measure (noise, or another normalisation), or where the convolution pads: a zero is another
    colour there.
    """
    embed, pixels = getattr(model, "patch_embed", None), _stated_normalisation(model)
    if pixels is None or not isinstance(embed, PatchEmbed) or not _can_read(embed, len(pixels.std)):
        return
    pixels = pixels.to(batches[0].device)
    if all(_within_range(pixels(batch)) for batch in batches):
        _rescale(embed.proj, pixels)
        attach_pixels(embed, pixels)


def attach_pixels(embed: nn.Module, pixels: Pixels) -> None:
    """Put ``pixels`` before the convolution of a patch embedding whose weight is rescaled already."""
    embed.__class__ = PixelPatchEmbed
    embed.add_module("pixels", pixels)


def reads_pixels(model: nn.Module, point: str) -> bool:
    """Whether a quantisation point sees pixel values."""
    embed = getattr(model, "patch_embed", None)
    return isinstance(embed, PixelPatchEmbed) and model.get_submodule(point) is embed.proj.get_submodule("input")


def _stated_normalisation(model: nn.Module) -> Pixels | None:
    """By the model's own configuration: where that says nothing, timm would answer with a usual mean and deviation."""
    stated = getattr(model, "pretrained_cfg", None) or {}
    if not all(isinstance(stated.get(name), tuple | list) for name in ("mean", "std")):
        return None
    config = data_config(model)
    return Pixels(config.mean, config.std) if min(config.std) > 0 else None


def _can_read(embed: PatchEmbed, colours: int) -> bool:
    conv = embed.proj
    plain = isinstance(conv, QuantConv2d) and conv.groups == 1 and conv.in_channels == colours
    return plain and not any(conv.padding) and not embed.dynamic_img_pad


def _within_range(pixels: Images) -> bool:
    tolerance = 1 / _HIGHEST  # what a model in bfloat16 rounds a pixel by
    return bool(pixels.min() >= RANGE[0] - tolerance and pixels.max() <= RANGE[1] + tolerance)


def _rescale(conv: QuantConv2d, pixels: Pixels) -> None:
    """x = (p − offset) / std, and W x + b = (W / std) p + b − Σ W · offset / std."""
    std, offset = pixels.std.to(conv.weight.device).double(), pixels.offset.to(conv.weight.device).double()
    weight: Float[Tensor, "out 3 height width"] = conv.weight.double() / std
    conv.weight.copy_(weight)
    add_to_bias(conv, -(weight * offset).sum((1, 2, 3)))

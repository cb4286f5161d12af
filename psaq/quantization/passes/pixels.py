"""Images on the grid that they come on: pixels have 256 levels, which 8 bits hold without error.

A normalised image has those levels at another place and distance for each colour, and one range for all three cuts
across them: of all points of a DeiT-Tiny at W8A8 this one cost the logits most. So the patch embedding undoes the
normalisation before it quantises, and its weight is rescaled to match.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psaq.images.batches import Images
from psaq.models.image_format import Values
from psaq.models.torchvision_models import own_statistics
from psaq.models.trace import IMAGE, Call, Trace
from psaq.models.zoo import data_config
from psaq.quantization.model.layers import PIXELS, QuantConv, add_to_bias, out_of_sight
from psaq.quantization.quantizers.keeps_types import KeepsTypes

PIXEL_BITS = 8
"""Fewer than these have no level for each of a pixel's: another range may be better for them."""

_HIGHEST = 2**PIXEL_BITS - 1
_MIDDLE = 128  # stands for zero, so that sums of products stay small
RANGE = (-_MIDDLE / _HIGHEST, (_HIGHEST - _MIDDLE) / _HIGHEST)
"""Where `Pixels` puts black and white."""
_UNIT = (0.0,), (1.0,)  # of images that are pixels in [0, 1] as they come


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
        with out_of_sight():
            return (images * self.std + self.offset).to(images.dtype)

    def extra_repr(self) -> str:
        return "undoes the normalisation of each channel"


@torch.no_grad()
def read_pixels(model: nn.Module, trace: Trace, batches: list[Images]) -> str | None:
    """Let the convolution that embeds a model's patches read pixel values; the answer stays.

    A detector that takes pixels in [0, 1] and normalises them itself has its convolution read them as they were before.

    Returns:
        Why nothing changed, where nothing did: the model does not say what its images are normalised by, ``batches``
        reach beyond black and white by that measure (noise, or another normalisation), or no single convolution
        without padding, where a zero is another colour, reads the images as they are.
    """
    own = own_statistics(model)
    stated = own or _stated_normalisation(model)
    if stated is None:
        return "the model does not state its images' normalisation"
    name = _embedding(trace) if own is None else _embedding_of_normalised(trace)
    if name is None or not _can_read(conv := model.get_submodule(name), len(stated[1])):
        return "no single convolution without padding reads the images"
    pixels = Pixels(*stated).to(batches[0].device)
    arriving = pixels if own is None else Pixels(*_UNIT).to(batches[0].device)
    if not all(_within_range(arriving(batch)) for batch in batches):
        return "the calibration images reach beyond black and white"
    assert isinstance(conv, nn.Conv2d)
    _rescale(conv, pixels)
    attach_pixels(conv, pixels)
    return None


def attach_pixels(conv: nn.Module, pixels: Pixels) -> None:
    """Put ``pixels`` before a convolution whose weight is rescaled already."""
    conv.add_module(PIXELS, pixels)


def reads_pixels(model: nn.Module, point: str) -> bool:
    """Whether a quantisation point sees pixel values."""
    return point.endswith(".input") and hasattr(model.get_submodule(point.rpartition(".")[0]), PIXELS)


def _embedding(trace: Trace) -> str | None:
    """The layer that alone takes the images as they are."""
    return _only_layer(trace.readers(IMAGE))


def _embedding_of_normalised(trace: Trace) -> str | None:
    """The layer that alone takes what a detector makes of its images before any of its layers: normalised, resized."""
    readers = [call for call in trace.calls if call.kind is not None and _takes_images(call, trace)]
    return _only_layer(readers)


def _takes_images(call: Call, trace: Trace) -> bool:
    return any(IMAGE in trace.reached(source, lambda behind: behind.kind is not None) for source in call.sources)


def _only_layer(readers: list[Call]) -> str | None:
    if len(readers) != 1 or readers[0].kind != "layer" or readers[0].sources[1] != f"{readers[0].module}.weight":
        return None
    return readers[0].module


def _stated_normalisation(model: nn.Module) -> tuple[Values, Values] | None:
    """By the model's own configuration: where that says nothing, timm would answer with a usual mean and deviation."""
    stated = getattr(model, "pretrained_cfg", None) or {}
    told = getattr(model, "psaq_data", None) is not None
    if not told and not all(isinstance(stated.get(name), tuple | list) for name in ("mean", "std")):
        return None
    config = data_config(model)
    return (config.mean, config.std) if min(config.std) > 0 else None


def _can_read(conv: nn.Module, colours: int) -> bool:
    if not isinstance(conv, nn.Conv2d) or not isinstance(conv, QuantConv):
        return False
    return conv.groups == 1 and conv.in_channels == colours and _is_unpadded(conv)


def _is_unpadded(conv: nn.Conv2d) -> bool:
    return conv.padding == "valid" or (not isinstance(conv.padding, str) and not any(conv.padding))


def _within_range(pixels: Images) -> bool:
    tolerance = 1 / _HIGHEST  # what a model in bfloat16 rounds a pixel by
    return bool(pixels.min() >= RANGE[0] - tolerance and pixels.max() <= RANGE[1] + tolerance)


def _rescale(conv: nn.Conv2d, pixels: Pixels) -> None:
    """x = (p − offset) / std, and W x + b = (W / std) p + b − Σ W · offset / std."""
    std, offset = pixels.std.to(conv.weight.device).double(), pixels.offset.to(conv.weight.device).double()
    weight: Float[Tensor, "out 3 height width"] = conv.weight.double() / std
    conv.weight.copy_(weight)
    add_to_bias(conv, -(weight * offset).sum((1, 2, 3)))

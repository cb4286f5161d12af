"""Where synthesis starts: leaves that hide one another, noise with a photograph's spectrum, white noise, or grey."""

import torch
from einops import rearrange
from jaxtyping import Float
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.nn import functional as F

from psaq.models.image_format import DataConfig, fitted
from psaq.synthesis.config import Start
from psaq.synthesis.leaves import LEAVES, pile
from psaq.synthesis.randomness import generator

Noise = Float[Tensor, "images channels height width"]

_SLOPE = 1.25
"""Of the amplitudes, f^-slope: photographs have 1 to 1.5; here it gives the variation that smoothness asks for."""
_GREY = 0.9
"""Correlation between two channels."""
_FAINT = 0.01
"""Of the noise on grey, which tells the images of a batch apart."""


def start_noise(start: Start, count: int, data: DataConfig, seed: int, batch: int) -> Noise:
    """Batch ``batch`` of a run before its first step, in the model's normalised space."""
    if start == "grey":
        return _grey(data) + _FAINT * white_noise(count, data, generator(seed, batch, "noise"))
    if start == "white":
        return white_noise(count, data, generator(seed, batch, "noise"))
    if start == "natural":
        return natural_noise(count, data, generator(seed, batch, "natural noise"))
    return dead_leaves(count, data, generator(seed, batch, "leaves"))


def white_noise(count: int, data: DataConfig, draw: torch.Generator) -> Noise:
    """Standard normal pixels in the model's normalised space, each by itself: the authors' start."""
    return torch.randn((count, data.channels, *data.image_size), generator=draw)


def _grey(data: DataConfig) -> Float[Tensor, "channels 1 1"]:
    """Half-way between black and white."""
    return ((0.5 - torch.tensor(data.mean)) / torch.tensor(data.std))[:, None, None]


def natural_noise(count: int, data: DataConfig, draw: torch.Generator) -> Noise:
    """Gaussian noise with the spectrum of photographs (Field 1987), their nearly grey colours and their contrast.

    White noise turns grey as it is smoothed: images made from it have less than half of a photograph's contrast, and
    next to none between patches.
    """
    coloured = _with_natural_spectrum(_coloured((count, data.channels, *data.image_size), draw))
    return _from_imagenet(_of_contrast_one(coloured), data)


def dead_leaves(count: int, data: DataConfig, draw: torch.Generator) -> Noise:
    """Leaves of all sizes that hide one another (Lee, Mumford, Huang 2001), some flat, some of natural noise.

    Edges, corners and even surfaces are what photographs have and noise of their spectrum lacks.
    """
    on_top = torch.stack([pile(data.image_size, draw) for _ in range(count)])
    colours = _coloured((count, data.channels, LEAVES + 1), draw)
    roughness = torch.rand((count, 1, LEAVES + 1), generator=draw).square()
    texture = _of_contrast_one(_with_natural_spectrum(_coloured((count, data.channels, *data.image_size), draw)))
    shown = rearrange(on_top, "images height width -> images 1 (height width)")
    flat, rough = (
        values.gather(2, shown.expand(-1, values.shape[1], -1)).unflatten(2, data.image_size)
        for values in (colours, roughness)
    )
    return _from_imagenet(_of_contrast_one(_without_steps(flat + rough * texture)), data)


def _without_steps(images: Noise) -> Noise:
    """Edges as a lens leaves them, not of one pixel's width."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    return F.avg_pool2d(padded, 3, stride=1)


def _coloured(shape: tuple[int, ...], draw: torch.Generator) -> Float[Tensor, "images channels ..."]:
    """Standard normal, channels correlated as a photograph's are."""
    grey, colour = (torch.randn((shape[0], channels, *shape[2:]), generator=draw) for channels in (1, shape[1]))
    return _GREY**0.5 * grey + (1 - _GREY) ** 0.5 * colour


def _of_contrast_one(images: Noise) -> Noise:
    return images / images.std(dim=(1, 2, 3), keepdim=True)


def _with_natural_spectrum(white: Noise) -> Noise:
    height, width = white.shape[-2:]
    down, across = torch.fft.fftfreq(height), torch.fft.rfftfreq(width)
    frequency = torch.hypot(across, down[:, None]).clamp_min(1 / max(height, width))
    return torch.fft.irfft2(torch.fft.rfft2(white) / frequency**_SLOPE, s=(height, width))


def _from_imagenet(images: Noise, data: DataConfig) -> Noise:
    """From ImageNet's normalisation, in which photographs have mean 0 and contrast 1, into the model's."""
    own_mean, own_std = torch.tensor(data.mean)[:, None, None], torch.tensor(data.std)[:, None, None]
    mean, std = _by_channel(IMAGENET_DEFAULT_MEAN, data), _by_channel(IMAGENET_DEFAULT_STD, data)
    return images * (std / own_std) + (mean - own_mean) / own_std


def _by_channel(values: tuple[float, ...], data: DataConfig) -> Float[Tensor, "channels 1 1"]:
    return torch.tensor(fitted(values, data.channels))[:, None, None]

"""What a layer multiplies its weight with, one vector for each position of its output, and what these sum up to."""

from functools import cache
from itertools import product
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

Pair = tuple[int, int]
"""Of rows and of columns."""
OfOneKind = TypeVar("OfOneKind", bound="Vectors")


class Vectors(Protocol):
    """Those of one call of a layer: a linear layer's tokens, a convolution's windows."""

    called_with: torch.Size
    """The shape of the layer's input: vectors of calls with one shape belong together, position by position."""

    def __len__(self) -> int: ...

    def sum(self) -> Float64[Tensor, " in"]: ...

    def outer_sum(self: OfOneKind, other: OfOneKind) -> Float64[Tensor, "in in"]:
        """Σ x yᵀ over all positions, x of this call and y of another with the same shape."""
        ...


def vectors_of(layer: nn.Module, x: Float[Tensor, "..."]) -> Vectors:
    """Those of a layer that is called with ``x``."""
    if not isinstance(layer, nn.Conv2d):
        return Rows(x, x.shape)
    images = x.reshape(-1, *x.shape[-3:])
    if _pair(layer.stride) == (1, 1) and (windows := Windows(layer, images)).share_most:
        return windows
    assert not isinstance(layer.padding, str)
    columns = F.unfold(images, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return Rows(columns.transpose(1, 2), images.shape)


class Rows:
    """Vectors that lie in memory one after the other.

    Args:
        rows: the vectors.
        called_with: the shape of the layer's input.
    """

    def __init__(self, rows: Float[Tensor, "*positions in"], called_with: torch.Size):
        self._rows, self.called_with = rows.flatten(0, -2), called_with

    def __len__(self) -> int:
        return len(self._rows)

    def sum(self) -> Float64[Tensor, " in"]:
        return self._rows.double().sum(0)

    def outer_sum(self, other: "Rows") -> Float64[Tensor, "in in"]:
        rows = self._rows.double()
        return rows.T @ (rows if other is self else other._rows.double())


class Windows:
    """Windows that move by one pixel, never laid out: the outer sum of im2col as a correlation.

    Two places of the kernel meet the same pairs of pixels as any other two that are as far apart, but at the image's
    edges. So each distance takes one product of all images with themselves, moved by it (13 for a kernel of 3 × 3, 25
    with another call's images), from which each pair of places takes away what it does not meet.

    Args:
        layer: of one group, of stride 1, padded with zeros.
        images: its input.
    """

    def __init__(self, layer: nn.Conv2d, images: Float[Tensor, "images channels height width"]):
        assert not isinstance(layer.padding, str)
        self._images, self.called_with = images, images.shape
        self._padding = _pair(layer.padding)
        steps = zip(_pair(layer.kernel_size), _pair(layer.dilation), strict=True)
        rows, columns = (range(0, size * step, step) for size, step in steps)
        self._places = list(product(rows, columns))
        height, width = images.shape[2:]
        self._area = height + 2 * self._padding[0], width + 2 * self._padding[1]
        self._positions = self._area[0] - rows[-1], self._area[1] - columns[-1]

    @property
    def share_most(self) -> bool:
        """Whether most pixels, padding included, are met by any place of a kernel that has several."""
        met, all_of_them = (rows * columns for rows, columns in (self._positions, self._area))
        return len(self._places) > 1 and 2 * met > all_of_them

    def __len__(self) -> int:
        return len(self._images) * self._positions[0] * self._positions[1]

    def sum(self) -> Float64[Tensor, " in"]:
        pixels = self._pixels()
        missed = torch.stack([pixels[:, self._missed(place)].sum(1) for place in self._places], 1)
        return (pixels.sum(1, keepdim=True) - missed).flatten()

    def outer_sum(self, other: "Windows") -> Float64[Tensor, "in in"]:
        pixels = self._pixels()
        others = pixels if other is self else other._pixels()
        channels, places = len(pixels), len(self._places)
        start, stop = self._farthest, pixels.shape[1] - self._farthest
        found = pixels.new_empty(channels, places, channels, places)

        @cache
        def of_all(distance: int) -> Float64[Tensor, "channels channels"]:
            return pixels[:, start:stop] @ others[:, start + distance : stop + distance].T

        for i, here in enumerate(self._places):
            missed = self._missed(here)
            missed_pixels = pixels[:, missed]
            for j, there in enumerate(self._places):
                if other is self and j < i:
                    found[:, i, :, j] = found[:, j, :, i].T
                else:
                    distance = self._flat(there) - self._flat(here)
                    found[:, i, :, j] = of_all(distance) - missed_pixels @ others[:, missed + distance].T
        return found.view(channels * places, channels * places)

    def _pixels(self) -> Float64[Tensor, "channels pixels"]:
        """Of all images, one after the other, with room to move at both ends. A pixel that is moved beyond its row
        meets one of the next; no window has such pairs, so they are among those that are taken away."""
        down, across = self._padding
        images = F.pad(self._images.transpose(0, 1).double(), (across, across, down, down))
        return F.pad(images.flatten(1), (self._farthest, self._farthest))

    @property
    def _farthest(self) -> int:
        return self._flat(self._places[-1])

    def _flat(self, place: Pair) -> int:
        return place[0] * self._area[1] + place[1]

    def _missed(self, place: Pair) -> Int64[Tensor, " missed"]:
        """Which pixels of the images this place of the kernel never meets."""
        missed = torch.zeros(self._area, dtype=torch.bool)
        (down, across), (height, width) = self._padding, self._images.shape[2:]
        missed[down : down + height, across : across + width] = True
        missed[place[0] : place[0] + self._positions[0], place[1] : place[1] + self._positions[1]] = False
        in_each = torch.arange(len(self._images))[:, None] * missed.numel() + missed.flatten().nonzero().T
        return (self._farthest + in_each.flatten()).to(self._images.device)


def _pair(value: int | tuple[int, ...]) -> Pair:
    """A convolution's setting, which torch takes as one number, too, where it is set later."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])

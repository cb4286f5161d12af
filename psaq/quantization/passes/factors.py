"""What each output of a layer is the product of with a row of the weight, and the sums over all outputs of it and of
its products, in float64."""

from functools import cache
from itertools import product
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

Place = tuple[int, int]
"""A row and a column."""


class Factors(Protocol):
    """One for each output of a channel."""

    def __len__(self) -> int: ...

    def sum(self) -> Float64[Tensor, " in"]: ...

    def products(self, other: Any) -> Float64[Tensor, "in in"]:
        """The sum of x yᵀ over all x here and those y of another call that belong to them."""
        ...


def factors_of(layer: nn.Module, x: Float[Tensor, "..."]) -> Factors:
    """Those of a layer that is called with ``x``."""
    if not isinstance(layer, nn.Conv2d):
        return Rows(x.flatten(0, -2))
    if layer.stride == (1, 1) and layer.kernel_size != (1, 1):
        return Windows(layer, x)
    assert not isinstance(layer.padding, str)
    columns = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return Rows(columns.transpose(1, 2).flatten(0, 1))


class Rows:
    """Factors that lie in memory one after the other."""

    def __init__(self, rows: Float[Tensor, "rows in"]):
        self._rows = rows.double()

    def __len__(self) -> int:
        return len(self._rows)

    def sum(self) -> Float64[Tensor, " in"]:
        return self._rows.sum(0)

    def products(self, other: "Rows") -> Float64[Tensor, "in in"]:
        return self._rows.T @ other._rows


class Windows:
    """Factors of a convolution that moves by one pixel, never laid out.

    Two places of its kernel meet the same pairs of pixels as any other two that are as far apart, but at an image's
    edge. So each distance takes one product of the images with themselves, moved by it, less the pairs that these
    two places miss: 13 products for a kernel of 3 × 3 in place of 81, on a ninth of the memory.

    Args:
        layer: of one group, padded with zeros.
        x: its input.
    """

    def __init__(self, layer: nn.Conv2d, x: Float[Tensor, "images channels height width"]):
        rows, columns = (
            range(0, size * step, step) for size, step in zip(layer.kernel_size, layer.dilation, strict=True)
        )
        self._places = list(product(rows, columns))
        (above, left), (height, width) = cast(Place, layer.padding), x.shape[2:]
        down, across = rows[-1], columns[-1]
        self._windows = height + 2 * above - down, width + 2 * left - across
        # So many zeros between rows, and between images, that no pixel meets one beyond an edge when it is moved.
        self._area = height + max(down, 2 * above), width + max(across, 2 * left)
        below, right = self._area[0] - height - above, self._area[1] - width - left
        images = F.pad(x.transpose(0, 1).double(), (left, right, above, below))
        self._farthest = down * self._area[1] + across
        self._pixels = F.pad(images.flatten(1), (self._farthest, self._farthest))
        self._count = len(x)
        self._inside = slice(above, above + height), slice(left, left + width)

    def __len__(self) -> int:
        return self._count * self._windows[0] * self._windows[1]

    def sum(self) -> Float64[Tensor, " in"]:
        everything = self._pixels.sum(1)
        missed = [self._pixels[:, self._missed(place)].sum(1) for place in self._places]
        return (everything[:, None] - torch.stack(missed, 1)).flatten()

    def products(self, other: "Windows") -> Float64[Tensor, "in in"]:
        channels, places = len(self._pixels), len(self._places)
        found = self._pixels.new_empty(channels, places, channels, places)

        @cache
        def moved_by(distance: int) -> Float64[Tensor, "channels channels"]:
            start, stop = self._farthest, self._pixels.shape[1] - self._farthest
            return self._pixels[:, start:stop] @ other._pixels[:, start + distance : stop + distance].T

        for i, here in enumerate(self._places):
            missed = self._missed(here)
            at_edges = self._pixels[:, missed]
            for j, there in enumerate(self._places):
                if other is self and j < i:
                    found[:, i, :, j] = found[:, j, :, i].T
                else:
                    distance = self._offset(there) - self._offset(here)
                    found[:, i, :, j] = moved_by(distance) - at_edges @ other._pixels[:, missed + distance].T
        return found.view(channels * places, channels * places)

    def _offset(self, place: Place) -> int:
        return place[0] * self._area[1] + place[1]

    def _missed(self, place: Place) -> Int64[Tensor, " pixels"]:
        """Where the pixels lie that this place of the kernel never meets."""
        missed = torch.zeros(self._area, dtype=torch.bool)
        missed[self._inside] = True
        missed[place[0] : place[0] + self._windows[0], place[1] : place[1] + self._windows[1]] = False
        of_each = torch.arange(self._count)[:, None] * missed.numel() + missed.flatten().nonzero().T
        return (self._farthest + of_each.flatten()).to(self._pixels.device)

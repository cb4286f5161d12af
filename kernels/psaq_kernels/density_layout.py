"""How the features of several layers lie in one packed tensor."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int64
from torch import Tensor

MOST_DISTANCES = 1 << 24

Features = Float[Tensor, "images windows patches channels"]


@dataclass(frozen=True)
class LayerShape:
    """One layer's share of the packed features."""

    images: int
    windows: int
    patches: int
    channels: int

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        return (self.images, self.windows, self.patches, self.channels)

    @property
    def elements(self) -> int:
        return math.prod(self.sizes)

    @property
    def rows(self) -> int:
        """Patches of all windows and images."""
        return self.images * self.windows * self.patches

    @property
    def samples(self) -> int:
        """Similarities of one image."""
        return self.windows * self.patches**2

    @property
    def windows_per_slot(self) -> int:
        return max(1, MOST_DISTANCES // self.patches**2)

    @property
    def slots(self) -> int:
        return math.ceil(self.windows / self.windows_per_slot)


def layer_shapes(sizes: Sequence[int]) -> tuple[LayerShape, ...]:
    """Read the flat list of four sizes per layer that the registered operation takes."""
    return tuple(LayerShape(*sizes[start : start + 4]) for start in range(0, len(sizes), 4))


def unpack(packed: Float[Tensor, "elements"], shapes: Sequence[LayerShape]) -> list[Features]:
    """Views of each layer's features."""
    parts = packed.split([shape.elements for shape in shapes])
    return [part.view(shape.sizes) for part, shape in zip(parts, shapes, strict=True)]


def unpack_runs(packed: Float[Tensor, "elements"], shapes: Sequence[LayerShape]) -> list[Features]:
    """Views in which neighbouring layers of one shape are joined along the image dimension."""
    runs = [(shape, len(list(run))) for shape, run in itertools.groupby(shapes)]
    return unpack(packed, [LayerShape(count * shape.images, *shape.sizes[1:]) for shape, count in runs])


@dataclass(frozen=True)
class DeviceLayout:
    """The layers' shapes as a table on the device, for kernels that handle all layers in one launch.

    An image's distances are counted in *slots*: runs of windows with at most `MOST_DISTANCES` distances, as many as
    one cell of the Triton kernels can number.
    """

    shapes: tuple[LayerShape, ...]
    table: Int64[Tensor, "layers fields"]

    @staticmethod
    @lru_cache(maxsize=64)
    def of(shapes: tuple[LayerShape, ...], device: torch.device) -> "DeviceLayout":
        """The layout of ``shapes``; the table is copied to the device once per combination of shapes."""
        rows = [_table_row(shapes, layer) for layer in range(len(shapes))]
        return DeviceLayout(shapes, torch.tensor(rows, dtype=torch.int64).to(device))

    @property
    def layers(self) -> int:
        return len(self.shapes)

    @property
    def images(self) -> int:
        return self.shapes[0].images

    @property
    def rows(self) -> int:
        return sum(shape.rows for shape in self.shapes)

    @property
    def slots(self) -> int:
        """Slots of one image, over all layers."""
        return sum(shape.slots for shape in self.shapes)

    @property
    def alignment(self) -> int:
        """The power of two, up to 16, that divides every layer's channels and position."""
        return math.gcd(16, *(shape.channels for shape in self.shapes), *(shape.elements for shape in self.shapes))


def _table_row(shapes: Sequence[LayerShape], layer: int) -> tuple[int, ...]:
    """Element, row and slot at which a layer begins, and its sizes, in the order in which the kernels read them."""
    before, shape = shapes[:layer], shapes[layer]
    return (
        sum(other.elements for other in before),
        sum(other.rows for other in before),
        shape.windows,
        shape.patches,
        shape.channels,
        sum(other.slots for other in before),
        shape.slots,
        shape.windows_per_slot,
    )

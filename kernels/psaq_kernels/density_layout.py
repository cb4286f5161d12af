"""How the features of several layers lie in one packed tensor."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

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

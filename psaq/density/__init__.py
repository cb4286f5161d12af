"""Fig. 3 as data: the density of patch similarity in every layer, for any set of images, and its numbers."""

from psaq.density.curves import DensityCurves
from psaq.density.measure import patch_similarity_density, similarity_grid
from psaq.density.modes import Mode
from psaq.density.numbers import LayerNumbers, describe

__all__ = [
    "DensityCurves",
    "LayerNumbers",
    "Mode",
    "describe",
    "patch_similarity_density",
    "similarity_grid",
]

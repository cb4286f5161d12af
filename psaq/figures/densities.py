"""Fig. 3 in a run's folder: the picture and its numbers."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from psaq.density import patch_similarity_density
from psaq.images.batches import CalibrationImages

DENSITY = "density.json"


def draw_densities(sources: Mapping[str, CalibrationImages], model: nn.Module, folder: Path) -> None:
    """Write ``density.png`` and ``density.json``: the patch-similarity density of each source in every layer.

    Raises:
        PsaqError: as `patch_similarity_density` does, or the folder cannot be written to.
    """
    curves = patch_similarity_density(model, sources)
    curves.plot(folder / "density.png")
    curves.write_json(folder / DENSITY)

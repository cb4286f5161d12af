"""``psaq plot-similarity``: an image beside its patch-similarity maps, layer by layer."""

from dataclasses import dataclass, field
from pathlib import Path

from psaq.commands.options import ModelOptions
from psaq.commands.outputs import FigureOptions


@dataclass(frozen=True)
class PlotSimilarity:
    """Draw an image beside Γ of each layer, and where the patches like a picked one lie.

    The image is a picture, a synthesised image or noise; for a bundled model a rendered scene by default.
    """

    model: ModelOptions = field(default_factory=ModelOptions)
    image: Path | None = None
    """A picture file."""
    generated: Path | None = None
    """A run of `psaq synthesize` that holds the image."""
    index: int = 0
    """Which image of the run, or which scene."""
    noise: bool = False
    """Gaussian noise as the image."""
    at: tuple[float, float] = (0.5, 0.5)
    """The point whose patch is picked: x and y as shares of the image."""
    layers: tuple[int, ...] = ()
    """Only these blocks, counted from 1."""
    figure: FigureOptions = field(default_factory=lambda: FigureOptions(Path("similarity.png")))

    def run(self) -> None:
        from psaq.commands.work.plot_similarity import run

        run(self)

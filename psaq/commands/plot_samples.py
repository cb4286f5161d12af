"""``psaq plot-samples``: Fig. 2, the synthesised images in true colours, and the way from noise to them."""

from dataclasses import dataclass, field
from pathlib import Path

from psaq.commands.options import ModelOptions
from psaq.commands.outputs import FigureOptions


@dataclass(frozen=True)
class PlotSamples:
    """Draw synthesised images in true colours, each with its class and the model's confidence in it (Fig. 2)."""

    model: ModelOptions = field(default_factory=ModelOptions)
    generated: Path | None = None
    """A run of `psaq synthesize`; without it, images are synthesised now."""
    classes: tuple[str, ...] = ()
    """Only images of these classes, each by name or number."""
    images: int = 16
    """How many images, at most."""
    seed: int = 0
    """Of a synthesis asked for here."""
    film: bool = False
    """Draw the way from noise to image instead, over the steps that the synthesis kept."""
    columns: int | None = None
    """Images per row."""
    figure: FigureOptions = field(default_factory=lambda: FigureOptions(Path("samples.png")))

    def run(self) -> None:
        from psaq.commands.work.plot_samples import run

        run(self)

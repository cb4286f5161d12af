"""``psaq plot-samples``: Fig. 2, the synthesised images in true colours, and the way from noise to them."""

from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from psaq.commands.options import ModelOptions
from psaq.commands.outputs import FigureOptions
from psaq.errors import PsaqError
from psaq.experiments.fig2 import choose_images, plot_film, plot_generated
from psaq.images.synthetic import SyntheticImages, load_images
from psaq.synthesis import SynthesisConfig, synthesize


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
        for option, value in (("images", self.images), ("columns", self.columns or 1)):
            if value < 1:
                raise PsaqError(f"--{option} {value}: must be at least 1")
        self.figure.check()
        model = self.model.load()
        images = choose_images(self._images(model), model, self.classes, self.images)
        if self.film:
            figure = plot_film(images, model, self.figure.look())
        else:
            figure = plot_generated(images, model, self.columns, self.figure.look())
        self.figure.write(figure)

    def _images(self, model: nn.Module) -> SyntheticImages:
        if self.generated is None:
            return synthesize(model, SynthesisConfig(num_images=self.images, seed=self.seed))
        return load_images(self.generated)

"""``psaq plot-density``: Fig. 3 of any vision transformer, in one command."""

from dataclasses import dataclass, field
from pathlib import Path

from psaq.commands.options import ModelOptions
from psaq.commands.outputs import FigureOptions
from psaq.synthesis import SynthesisConfig


@dataclass(frozen=True)
class PlotDensity:
    """Draw how densely each similarity occurs between the patches of an image, in every layer (Fig. 3).

    Any of noise, real and generated images may be asked for. Without a word on it, all that need no files are
    drawn: noise, freshly synthesised images and, for the bundled models, rendered scenes.
    """

    model: ModelOptions = field(default_factory=ModelOptions)
    noise: bool = False
    """Draw Gaussian noise."""
    real: tuple[Path, ...] = ()
    """Draw these pictures: files, or folders of them."""
    scenes: bool = False
    """Draw rendered scenes as the real images (bundled models only)."""
    generated: Path | None = None
    """Draw the images of this run of `psaq synthesize`."""
    synthesize: bool = False
    """Synthesise images now and draw them."""
    images: int = 16
    """How many images of each kind; of a run or a folder, at most so many."""
    steps: int = SynthesisConfig.steps
    """Steps of a synthesis asked for here."""
    seed: int = 0
    """Of the noise, the scenes and the synthesis."""
    layers: tuple[int, ...] = ()
    """Only these blocks, counted from 1."""
    bandwidth: float = 0.01
    """The kernel's standard deviation, in units of similarity."""
    grid: int | None = None
    """Points at which the density is evaluated; by default one every half bandwidth."""
    per_head: bool = False
    """Compare patches head by head, instead of their mean over the heads."""
    figure: FigureOptions = field(default_factory=lambda: FigureOptions(Path("density.png")))
    csv: Path | None = None
    """Also write the curves here."""
    json: Path | None = None
    """Also write the numbers here."""

    def run(self) -> None:
        from psaq.commands.work.plot_density import run

        run(self)

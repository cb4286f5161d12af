"""``psaq plot-similarity``: an image beside its patch-similarity maps, layer by layer."""

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from psaq.commands.options import ModelOptions
from psaq.commands.outputs import FigureOptions
from psaq.density.maps import SimilarityMap, similarity_maps
from psaq.errors import PsaqError
from psaq.images.batches import gaussian_images
from psaq.images.pictures import load_pictures, normalised_for
from psaq.images.scenes import SceneDataset
from psaq.images.synthetic import load_images, true_colours
from psaq.models.zoo import data_config
from psaq_plots import similarity_figure


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
        self.figure.check()
        if sum((self.image is not None, self.generated is not None, self.noise)) > 1:
            raise PsaqError("--image, --generated and --noise: each names the image; give one of them")
        model = self.model.load()
        image = self._image(model)
        maps = similarity_maps(model, image, self.at, self.layers or None)
        config = data_config(model)
        figure = similarity_figure(
            true_colours(image, config.mean, config.std).permute(1, 2, 0).numpy(),
            [layer.similarity.numpy() for layer in maps],
            [layer.over_image.numpy() for layer in maps],
            picked_patch(maps[0]),
            [layer.layer for layer in maps],
            self.figure.look(),
        )
        self.figure.write(figure)

    def _image(self, model: nn.Module) -> Tensor:
        if self.image is not None:
            return load_pictures(self.image, model)[0]
        if self.noise:
            return gaussian_images(model, 1, self.index)[0]
        if self.generated is None:
            return SceneDataset(self.index + 1, model=model)[self.index][0]
        images = normalised_for(model, load_images(self.generated))
        if not 0 <= self.index < len(images):
            raise PsaqError(f"--index {self.index}: {self.generated} holds {len(images)} images, counted from 0")
        return images[self.index]


def picked_patch(layer: SimilarityMap) -> tuple[float, float, float, float]:
    """The picked patch as left, top, width and height, in shares of the image."""
    rows, columns = layer.over_image.shape
    row, column = layer.patch
    return column / columns, row / rows, 1 / columns, 1 / rows

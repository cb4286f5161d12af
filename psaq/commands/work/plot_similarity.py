"""What ``psaq plot-similarity`` does."""

from typing import Any

from torch import Tensor, nn

from psaq.commands.plot_similarity import PlotSimilarity
from psaq.density.maps import SimilarityMap, similarity_maps
from psaq.errors import PsaqError
from psaq.images.batches import gaussian_images
from psaq.images.held_out import held_out_scenes
from psaq.images.pictures import load_pictures, normalised_for
from psaq.images.synthetic import load_images, true_colours
from psaq.models.zoo import data_config
from psaq_plots import similarity_figure


def run(options: PlotSimilarity) -> None:
    options.figure.check()
    if sum((options.image is not None, options.generated is not None, options.noise)) > 1:
        raise PsaqError("--image, --generated and --noise: each names the image; give one of them")
    model = options.model.load()
    image = _image(options, model)
    maps = similarity_maps(model, image, options.at, options.layers or None)
    config = data_config(model)
    figure = similarity_figure(
        true_colours(image, config.mean, config.std).permute(1, 2, 0).numpy(),
        [layer.similarity.numpy() for layer in maps],
        [layer.over_image.numpy() for layer in maps],
        picked_patch(maps[0]),
        [layer.layer for layer in maps],
        options.figure.look(),
    )
    options.figure.write(figure)


def _image(options: PlotSimilarity, model: nn.Module) -> Tensor:
    if options.image is not None:
        return load_pictures(options.image, model)[0]
    if options.noise:
        return gaussian_images(model, 1, options.index)[0]
    if options.generated is None:
        return _scene(options, model)
    images = normalised_for(model, load_images(options.generated))
    if not 0 <= options.index < len(images):
        raise PsaqError(f"--index {options.index}: {options.generated} holds {len(images)} images, counted from 0")
    return images[options.index]


def _scene(options: PlotSimilarity, model: nn.Module) -> Tensor:
    if not options.model.is_bundled:
        raise PsaqError(f"model {options.model.model!r}: name the image with --image, --generated or --noise")
    scenes: Any = held_out_scenes(options.model.model, options.index + 1, model, seed=0)
    return scenes[options.index][0]


def picked_patch(layer: SimilarityMap) -> tuple[float, float, float, float]:
    """The picked patch as left, top, width and height, in shares of the image."""
    rows, columns = layer.over_image.shape
    row, column = layer.patch
    return column / columns, row / rows, 1 / columns, 1 / rows

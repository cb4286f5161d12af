"""What ``psaq plot-samples`` does."""

from torch import nn

from psaq.commands.plot_samples import PlotSamples
from psaq.errors import PsaqError
from psaq.figures.samples import choose_images, find_classes, plot_film, plot_generated
from psaq.images.synthetic import SyntheticImages, load_images
from psaq.synthesis import SynthesisConfig, synthesize


def run(options: PlotSamples) -> None:
    for option, value in (("images", options.images), ("columns", options.columns or 1)):
        if value < 1:
            raise PsaqError(f"--{option} {value}: must be at least 1")
    options.figure.check()
    model = options.model.load()
    find_classes(model, options.classes)
    images = choose_images(_images(options, model), model, options.classes, options.images)
    if options.film:
        figure = plot_film(images, model, options.figure.look())
    else:
        figure = plot_generated(images, model, options.columns, options.figure.look())
    options.figure.write(figure)


def _images(options: PlotSamples, model: nn.Module) -> SyntheticImages:
    if options.generated is None:
        config = SynthesisConfig(num_images=options.images, seed=options.seed)
        return synthesize(model, config, progress=True)
    return load_images(options.generated)

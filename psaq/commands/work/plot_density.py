"""What ``psaq plot-density`` does."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from psaq.commands.plot_density import PlotDensity
from psaq.density import DensityCurves, LayerNumbers, describe, patch_similarity_density
from psaq.density.measure import check_measurable
from psaq.errors import PsaqError
from psaq.images.batches import CalibrationImages, gaussian_images
from psaq.images.held_out import held_out_scenes
from psaq.images.pictures import load_pictures, normalised_for
from psaq.images.synthetic import load_images
from psaq.synthesis import SynthesisConfig, synthesize


def run(options: PlotDensity) -> None:
    options.figure.check(options.csv, options.json)
    model = options.model.load()
    check_measurable(model, options.layers or None, options.bandwidth, options.grid)
    curves = patch_similarity_density(
        model,
        dict(_sources(options, model)),
        layers=options.layers or None,
        bandwidth=options.bandwidth,
        grid_points=options.grid,
        heads="separate" if options.per_head else "mean",
        progress=True,
    )
    print("\n".join(numbers_table(curves.numbers())))
    _write(options, curves)


def _sources(options: PlotDensity, model: nn.Module) -> Iterator[tuple[str, CalibrationImages]]:
    everything = not (options.noise or options.real or options.scenes or options.generated or options.synthesize)
    if options.noise or everything:
        yield "noise", gaussian_images(model, options.images, options.seed)
    if options.real or options.scenes or (everything and options.model.is_bundled):
        yield "real", _real(options, model)
    if options.generated or options.synthesize or everything:
        yield "generated", _generated(options, model)


def _real(options: PlotDensity, model: nn.Module) -> Tensor:
    if options.real and options.scenes:
        raise PsaqError("--real and --scenes: both name the real images; give one of them")
    if options.real:
        return load_pictures(options.real, model, options.images)
    if not options.model.is_bundled:
        raise PsaqError(
            f"--scenes: are for the bundled models, not for {options.model.model}; name pictures with --real"
        )
    scenes: Any = held_out_scenes(options.model.model, options.images, model, options.seed)
    return torch.stack([scenes[index][0] for index in range(options.images)])


def _generated(options: PlotDensity, model: nn.Module) -> Tensor:
    if options.generated and options.synthesize:
        raise PsaqError("--generated and --synthesize: both name the generated images; give one of them")
    if options.generated:
        return normalised_for(model, load_images(options.generated))[: options.images]
    config = SynthesisConfig(num_images=options.images, seed=options.seed, steps=options.steps)
    return synthesize(model, config, progress=True).images


def _write(options: PlotDensity, curves: DensityCurves) -> None:
    options.figure.write(curves.plot(style=options.figure.look()))
    for path, write in ((options.csv, curves.write_csv), (options.json, curves.write_json)):
        if path is not None:
            write(path)
            print(path)


def numbers_table(numbers: Mapping[str, Sequence[LayerNumbers]]) -> list[str]:
    """The numbers beside the picture, a line per layer and source, and a verdict per source."""
    layers = next(iter(numbers.values()))
    width = max(len(layer.layer) for layer in layers)
    lines = [f"{'layer':<{width}}  {'source':<10} entropy  width  bimodal  to real  apart  modes at"]
    for position in range(len(layers)):
        for source, of_source in numbers.items():
            lines.append(f"{of_source[position].layer:<{width}}  {source:<10} {_cells(of_source[position])}")
    return [*lines, "", *(f"{source}: {describe(of_source)}" for source, of_source in numbers.items())]


def _cells(numbers: LayerNumbers) -> str:
    to_real = "      –" if numbers.to_real is None else f"{numbers.to_real:7.3f}"
    apart = "    –" if numbers.separation is None else f"{numbers.separation:5.2f}"
    modes = " ".join(f"{mode.position:.2f}" for mode in numbers.modes)
    return f"{numbers.entropy:7.2f}  {numbers.width:5.2f}  {numbers.bimodal:7.0%}  {to_real}  {apart}  {modes}"

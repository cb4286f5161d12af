"""``python -m psaq.plot_density``: Fig. 3 of any vision transformer, in one command."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from psaq.cli import run_command
from psaq.commands.options import ModelOptions
from psaq.commands.outputs import FigureOptions
from psaq.density import DensityCurves, LayerNumbers, describe, patch_similarity_density
from psaq.errors import PsaqError
from psaq.images.batches import CalibrationImages, gaussian_images
from psaq.images.pictures import load_pictures, normalised_for
from psaq.images.scenes import SceneDataset
from psaq.images.synthetic import load_images
from psaq.models.micro import MICRO_MODELS
from psaq.synthesis import SynthesisConfig, synthesize


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
        self.figure.check(self.csv, self.json)
        model = self.model.load()
        curves = patch_similarity_density(
            model,
            dict(self._sources(model)),
            layers=self.layers or None,
            bandwidth=self.bandwidth,
            grid_points=self.grid,
            heads="separate" if self.per_head else "mean",
            progress=True,
        )
        print("\n".join(numbers_table(curves.numbers())))
        self._write(curves)

    def _sources(self, model: nn.Module) -> Iterator[tuple[str, CalibrationImages]]:
        everything = not (self.noise or self.real or self.scenes or self.generated or self.synthesize)
        bundled = self.model.model in MICRO_MODELS
        if self.noise or everything:
            yield "noise", gaussian_images(model, self.images, self.seed)
        if self.real or self.scenes or (everything and bundled):
            yield "real", self._real(model)
        if self.generated or self.synthesize or everything:
            yield "generated", self._generated(model)

    def _real(self, model: nn.Module) -> Tensor:
        if self.real and self.scenes:
            raise PsaqError("--real and --scenes: both name the real images; give one of them")
        if self.real:
            return load_pictures(self.real, model, self.images)
        scenes = SceneDataset(self.images, self.seed, model)
        return torch.stack([scenes[index][0] for index in range(len(scenes))])

    def _generated(self, model: nn.Module) -> Tensor:
        if self.generated and self.synthesize:
            raise PsaqError("--generated and --synthesize: both name the generated images; give one of them")
        if self.generated:
            return normalised_for(model, load_images(self.generated))[: self.images]
        config = SynthesisConfig(num_images=self.images, seed=self.seed, steps=self.steps)
        return synthesize(model, config).images

    def _write(self, curves: DensityCurves) -> None:
        self.figure.write(curves.plot(style=self.figure.look()))
        for path, write in ((self.csv, curves.write_csv), (self.json, curves.write_json)):
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


if __name__ == "__main__":
    run_command(PlotDensity)

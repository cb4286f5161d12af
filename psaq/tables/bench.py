"""Table 1, model by model: quantise on real images, on noise and on synthesised images, and measure each."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import Dataset

from psaq.distributed import broadcast_module, first_says, from_first, is_first, together
from psaq.errors import PsaqError
from psaq.figures.densities import DENSITY, draw_densities
from psaq.figures.samples import draw_run
from psaq.files import make_folder
from psaq.images.batches import gaussian_images
from psaq.images.pictures import normalised_for
from psaq.images.synthetic import SyntheticImages
from psaq.models.fingerprint import fingerprint
from psaq.models.zoo import model_source, named_source
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import RECIPES, parse_precision
from psaq.synthesis import SynthesisConfig
from psaq.synthesis.folder import load_finished, synthesize_all_into
from psaq.tables.cells import Cell, Result
from psaq.tables.comparison import GAUSSIAN, STANDARD
from psaq.tables.labelled import ImageSource
from psaq.tasks.classification import collect_logits, compare

_DRAWN = 8
"""Images of each source in a model's Fig. 3."""


@dataclass(frozen=True)
class Setup:
    """What every cell of a table has in common."""

    source: ImageSource
    synthesis: SynthesisConfig
    """Its seed is replaced by the cell's; its number of images is that of every method."""
    seeds: tuple[int, ...]
    synthesized: str | None
    """Where images were synthesised before: a path with {model} and {seed} in it; None synthesises them."""
    batch_size: int
    workers: int
    folder: Path
    """The run's."""

    def images_folder(self, name: str, seed: int) -> Path:
        """Where a model's synthesised images of a seed, and the figures of them, go."""
        return self.folder / f"{name}-seed{seed}"

    def drawn(self, name: str) -> bool:
        """Whether a model's figures are there."""
        return first_says((self.images_folder(name, self.seeds[0]) / DENSITY).exists)


class Bench:
    """One model with what its cells need, each made when it is first needed, by every rank at the same point."""

    def __init__(self, name: str, model: nn.Module, setup: Setup):
        self.name = name
        self.model = model
        self.setup = setup

    def measure(self, cell: Cell) -> Result:
        """Quantise and evaluate. Raises PsaqError as `quantize` and `evaluate` do."""
        images = self.calibration_images(cell)
        recipe = RECIPES[cell.recipe](*parse_precision(cell.precision))
        with together():
            qmodel = quantize(self.model, images, recipe, progress=True)
        broadcast_module(qmodel)
        logits, labels = self._logits(qmodel, str(cell))
        reference, _ = self._reference
        return Result(cell, compare(logits, labels, reference), compare(reference, labels).top1, self.weights)

    def calibration_images(self, cell: Cell) -> Float[Tensor, "images 3 height width"]:
        """What the cell's method calibrates on, in the model's normalised space."""
        if cell.method == STANDARD:
            return self._real
        if cell.method == GAUSSIAN:
            return gaussian_images(self.model, self.setup.synthesis.num_images, cell.seed)
        return normalised_for(self.model, self._synthesised[cell.seed])

    @cached_property
    def weights(self) -> str:
        """The digest of the model's weights."""
        return fingerprint(self.model)

    @cached_property
    def _dataset(self) -> Dataset[tuple[Tensor, int]]:
        with together():
            return self.setup.source.evaluation(self.name, self.model)

    @cached_property
    def _reference(self) -> tuple[Float[Tensor, "images classes"], Int[Tensor, "images"]]:
        return self._logits(self.model, f"{self.name} FP")

    @cached_property
    def _real(self) -> Float[Tensor, "images 3 height width"]:
        count = self.setup.synthesis.num_images
        return from_first(lambda: self.setup.source.real(self.name, self.model, count))

    @cached_property
    def _synthesised(self) -> dict[int, SyntheticImages]:
        """Seed → images, of all seeds: so the ranks share them out."""
        configs = {seed: replace(self.setup.synthesis, seed=seed) for seed in self.setup.seeds}
        if self.setup.synthesized is None:
            folders = {self._folder(seed): config for seed, config in configs.items()}
            return dict(zip(configs, synthesize_all_into(folders, self.model, progress=True), strict=True))
        with together():
            return {seed: self._found(self.setup.synthesized, config) for seed, config in configs.items()}

    def _found(self, pattern: str, config: SynthesisConfig) -> SyntheticImages:
        folder = Path(pattern.replace("{model}", self.name).replace("{seed}", str(config.seed)))
        images = load_finished(folder, config, self.model)
        made_for = images.provenance.get("model")
        source = model_source(self.model)
        if source is not None and made_for not in (source.name, source.architecture):
            raise PsaqError(f"{folder}: its images were synthesised from {made_for}, not from {self.name}")
        return images

    def find_images(self) -> None:
        """Load images that were synthesised before, so that wrong ones are known before the work."""
        if self.setup.synthesized is not None:
            _ = self._synthesised

    def draw(self, with_real: bool) -> None:
        """Fig. 2 and Fig. 3 of the first seed's images, into their folder."""
        seed = self.setup.seeds[0]
        images = self._synthesised[seed]
        sources = {"noise": gaussian_images(self.model, _DRAWN), "generated": images.images[:_DRAWN]}
        if with_real:
            sources["real"] = self._real[:_DRAWN]
        with together():
            if is_first():
                folder = make_folder(self._folder(seed))
                draw_run(images, self.model, folder)
                draw_densities(sources, self.model, folder)

    def _folder(self, seed: int) -> Path:
        return self.setup.images_folder(self.name, seed)

    def _logits(
        self, model: nn.Module, description: str
    ) -> tuple[Float[Tensor, "images classes"], Int[Tensor, "images"]]:
        return collect_logits(
            model,
            self._dataset,
            batch_size=self.setup.batch_size,
            workers=self.setup.workers,
            progress=True,
            description=description,
        )


def weights_file(folder: Path | None, name: str) -> Path | None:
    """A model's file in a folder of weights, by its short name, its timm tag, or the tag without its training's name.

    Returns:
        None without a folder, or where it holds none of them: the published weights are taken then.
    """
    if folder is None:
        return None
    tag = named_source(name).architecture
    names = (f"{stem}.safetensors" for stem in dict.fromkeys((name, tag, tag.split(".")[0])))
    return next((folder / file for file in names if (folder / file).exists()), None)

"""What makes calibration images better: synthesise with one thing changed, quantise a real model, and evaluate.

python -m psaq.experiments.image_ablation --weights W.safetensors --val imagenet/val --train imagenet/train
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from psaq.errors import PsaqError
from psaq.experiments.image_variants import OBJECTIVES
from psaq.experiments.rows import read_rows, write_rows
from psaq.images.batches import gaussian_images
from psaq.images.imagenet import imagenet
from psaq.images.pictures import load_pictures, picture_files
from psaq.images.synthetic import FILE_NAME, SyntheticImages
from psaq.losses import patch_similarity_entropy
from psaq.models.features import patch_features
from psaq.models.zoo import data_config, load_model
from psaq.program import run_command
from psaq.progress import progress_bar
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe
from psaq.runs import RunFolder, device_name, read_run
from psaq.synthesis import SynthesisConfig
from psaq.synthesis.folder import load_finished
from psaq.synthesis.loop import Synthesis
from psaq.synthesis.noise import start_noise
from psaq.tasks.classification import collect_logits, compare

CORE_MINUTES = "core_minutes"
NOISE, NATURAL, REAL = "noise", "natural noise", "real images"
REFERENCES = (NOISE, NATURAL, REAL)
"""What synthesis may start from, and what it stands in for: 32 images each."""

CHANGES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "10 steps": {"steps": 10},
    "50 steps": {"steps": 50},
    "from white noise": {"start": "white"},
    "from white noise, 100 steps": {"start": "white", "steps": 100},
    "64 images": {"num_images": 64},
    "from leaves": {"start": "leaves"},
    "class weight 0": {"class_weight": 0.0, "start": "natural"},
    "class weight 0, from leaves": {"class_weight": 0.0, "start": "leaves"},
    "class weight 10": {"class_weight": 10.0},
    "learning rate 0.1": {"learning_rate": 0.1},
    "the authors' grid": {"grid": "reference"},
    "bfloat16": {"precision": "bfloat16"},
    **{name: {} for name in OBJECTIVES},
}
"""What is changed → the fields of `SynthesisConfig` that it changes; `OBJECTIVES` change the loop itself."""

RECIPES: dict[str, Recipe] = {
    "W4A8 accurate": Recipe.accurate(4, 8),
    "W4A8 paper": Recipe.paper(4, 8),
    "W8A8 paper": Recipe.paper(8, 8),
}
"""How each set of images is put to use."""


@dataclass(frozen=True)
class Row:
    """One set of images, one recipe and what came out of it; accuracy and agreement in percent, SQNR in dB."""

    change: str
    seed: int
    images: int
    steps: int
    core_minutes: float
    """Processor time of the synthesis; nan where the images come from another run, which did not measure it."""
    entropy: float
    """Of the finished images, summed over the blocks, in nats."""
    recipe: str
    digest: str
    """The recipe's: rows of an earlier recipe are measured again."""
    top1: float
    agreement: float
    logit_sqnr: float
    fp_top1: float
    n: int
    device: str


@dataclass(frozen=True)
class ImageSet:
    """Calibration images and what it took to make them."""

    images: Float[Tensor, "images 3 height width"]
    steps: int = 0
    core_minutes: float = 0.0
    device: str = ""


@dataclass(frozen=True)
class ImageAblation:
    """Calibrate DeiT-Tiny on images made in other ways than the default; started again, measure what is missing."""

    weights: Path
    """DeiT-Tiny's safetensors file."""
    val: Path
    """Labelled images to evaluate on, one folder per wnid."""
    train: Path
    """Real images to calibrate on: the first 32 in sorted path order."""
    model: str = "deit_tiny"
    """The model's name."""
    crop_pct: float = 0.987
    """Of the evaluation."""
    train_crop_pct: float = 0.875
    """Of the real calibration images."""
    every: int = 3
    """Evaluate on every so many-th labelled image."""
    seeds: tuple[int, ...] = (0,)
    """Of the syntheses and the noise."""
    changes: tuple[str, ...] = field(default_factory=lambda: (*REFERENCES, *CHANGES))
    """Which sets of images to measure, by name."""
    runs: Path = Path("runs/image_ablation")
    """Where the images are kept; a finished ``psaq synthesize`` of the same configuration may lie there."""
    out: Path = Path(__file__).parent / "results" / "image_ablation_deit_tiny.csv"
    """The table; rows that are there already are kept, unless their recipe has changed."""

    def run(self) -> None:
        bench, rows = Bench(self), [row for row in read_rows(self.out, Row) if _is_current(row)]
        for change, seed in self._wanted():
            missing = [name for name in RECIPES if (change, seed, name) not in {_key(row) for row in rows}]
            if missing:
                rows += bench.measure(bench.images(change, seed), change, seed, missing)
                write_rows(self.out, rows)
                print(*rows[-len(missing) :], sep="\n")

    def _wanted(self) -> list[tuple[str, int]]:
        unknown = [change for change in self.changes if change not in (*REFERENCES, *CHANGES)]
        if unknown:
            raise PsaqError(f"changes {unknown}: choose from {', '.join((*REFERENCES, *CHANGES))}")
        return [(change, seed) for change in self.changes for seed in self.seeds if change != REAL or seed == 0]


def _key(row: Row) -> tuple[str, int, str]:
    return row.change, row.seed, row.recipe


def _is_current(row: Row) -> bool:
    return row.recipe in RECIPES and row.digest == RECIPES[row.recipe].digest


class Bench:
    """The model, what it is evaluated on and its own logits, each made when first needed."""

    def __init__(self, options: ImageAblation):
        self.options = options

    @cached_property
    def model(self) -> nn.Module:
        return load_model(self.options.model, self.options.weights)

    @cached_property
    def dataset(self) -> Dataset[tuple[Tensor, int]]:
        dataset = imagenet(self.options.val, self.model, self.options.crop_pct)
        return Subset(dataset, range(0, len(dataset), self.options.every))  # type: ignore[arg-type]

    @cached_property
    def reference(self) -> tuple[Tensor, Tensor]:
        return collect_logits(self.model, self.dataset, batch_size=50, progress=True, description="FP")

    def images(self, change: str, seed: int) -> ImageSet:
        """The images of a row by its name: synthesised, unless they are a reference or have been."""
        if change in REFERENCES:
            return ImageSet(self._reference_images(change, seed, SynthesisConfig().num_images))
        config = SynthesisConfig(**{"seed": seed, **CHANGES[change]})
        folder = self.options.runs / f"{change.replace(' ', '_')}-seed{seed}"
        made = self._synthesised(folder, OBJECTIVES.get(change, Synthesis), config)
        minutes = read_run(folder)["results"].get(CORE_MINUTES, math.nan)
        return ImageSet(made.images, config.rounds * config.steps, minutes, made.provenance["device"])

    def _reference_images(self, name: str, seed: int, count: int) -> Float[Tensor, "images 3 height width"]:
        if name == NOISE:
            return gaussian_images(self.model, count, seed)
        if name == NATURAL:
            return start_noise("natural", count, data_config(self.model), seed, 0)
        files = picture_files([self.options.train])[:count]
        return load_pictures(files, self.model, crop_pct=self.options.train_crop_pct)

    def _synthesised(self, folder: Path, kind: type[Synthesis], config: SynthesisConfig) -> SyntheticImages:
        if (folder / FILE_NAME).exists():
            return load_finished(folder, config, self.model)
        run = RunFolder(folder, "image_ablation", config, config.seed)
        started = time.process_time()
        images = synthesize_by(kind(self.model, config))
        run.finish({CORE_MINUTES: (time.process_time() - started) / 60})
        images.save(folder)
        return images

    def measure(self, images: ImageSet, change: str, seed: int, recipes: Sequence[str]) -> list[Row]:
        """A row for each of `RECIPES` that is named."""
        entropy = entropy_sum(self.model, images.images)
        made = (change, seed, len(images.images), images.steps, images.core_minutes, entropy)
        device = images.device or device_name()
        return [
            Row(*made, name, RECIPES[name].digest, *self._accuracy(images.images, name), device) for name in recipes
        ]

    def _accuracy(self, images: Tensor, recipe: str) -> tuple[float, float, float, float, int]:
        qmodel = quantize(self.model, images, RECIPES[recipe], progress=True)
        logits, labels = collect_logits(qmodel, self.dataset, batch_size=50, progress=True, description=recipe)
        report, full = compare(logits, labels, self.reference[0]), compare(*self.reference)
        assert report.agreement is not None
        assert report.logit_sqnr is not None
        return report.top1, report.agreement, report.logit_sqnr, full.top1, report.n


def synthesize_by(synthesis: Synthesis) -> SyntheticImages:
    """All batches of a synthesis, from start to end, as `psaq.synthesize` takes them."""
    batches = range(len(synthesis.batch_sizes))
    total = len(batches) * synthesis.total_steps
    with progress_bar(description="synthesising", total=total, unit="step") as bar:
        return synthesis.result([tuple(synthesis.finish_batch(index, bar)) for index in batches])


@torch.no_grad()
def entropy_sum(model: nn.Module, images: Float[Tensor, "images 3 height width"], batch_size: int = 8) -> float:
    """Patch-similarity entropy summed over the blocks, averaged over the images, in nats."""
    parts = [patch_similarity_entropy(patch_features(model, batch)).sum(dim=0) for batch in images.split(batch_size)]
    return float(torch.cat(parts).mean())


if __name__ == "__main__":
    run_command(ImageAblation, prog="python -m psaq.experiments.image_ablation")

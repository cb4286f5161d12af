"""The paper recipe on a real DeiT-Tiny: Standard, Gaussian and PSAQ calibration, on real images, into one CSV.

Twelve blocks amplify a change in the last place of one float to the size of quantisation noise: what one run gives is
one draw of many that are equally right. So each quantised model is evaluated with several roundings.

python -m psaq.experiments.deit_tiny --weights W.safetensors --val imagenet/val --train imagenet/train
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.experiments.nudged import LAST_PLACE, float_arithmetic, nudged
from psaq.experiments.rows import read_rows, write_rows
from psaq.images.batches import CalibrationImages, gaussian_images
from psaq.images.imagenet import imagenet
from psaq.images.pictures import load_pictures, picture_files
from psaq.images.synthetic import load_images
from psaq.models.zoo import load_model
from psaq.program import run_command
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe, parse_precision
from psaq.runs import RunFolder
from psaq.synthesis import SynthesisConfig
from psaq.synthesis.folder import synthesize_into
from psaq.tables.comparison import GAUSSIAN, PSAQ, STANDARD
from psaq.tasks.classification import Report, collect_logits, compare

IMAGES = 32
"""Calibration images of every kind."""


@dataclass(frozen=True)
class Cell:
    """One measurement: what was calibrated on, how it was quantised, and how its floats were rounded."""

    method: str
    seed: int
    precision: str
    rounding: int
    """0 as float32 has it; otherwise the seed of changes in the last place."""


@dataclass(frozen=True)
class Result:
    """A cell and what came out of it."""

    method: str
    seed: int
    precision: str
    rounding: int
    top1: float
    top5: float
    agreement: float
    logit_sqnr: float
    fp_top1: float
    n: int

    @property
    def cell(self) -> Cell:
        return Cell(self.method, self.seed, self.precision, self.rounding)


@dataclass(frozen=True)
class DeitTiny:
    """Measure the paper recipe on DeiT-Tiny. Killed and started again, it goes on with the cells that are missing."""

    weights: Path
    """DeiT-Tiny's safetensors file."""
    val: Path
    """Labelled images to evaluate on, one folder per wnid."""
    train: Path
    """Real images for "Standard": the first 32 in sorted path order."""
    crop_pct: float = 0.987
    """Of the evaluation."""
    train_crop_pct: float = 0.875
    """Of the real calibration images."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of noise and synthesis."""
    roundings: int = 4
    """Evaluate each quantised model with so many roundings."""
    images: tuple[Path, ...] = ()
    """Runs of ``psaq synthesize``, one per seed; without them images are synthesised into ``runs``."""
    runs: Path = Path("runs/deit_tiny")
    """Where cells that are done and synthesised images are kept."""
    precisions: tuple[str, ...] = ("W8A8", "W4A8")
    """Bits of weights and activations."""
    out: Path = Path(__file__).parent / "results" / "deit_tiny.csv"
    """The table, written when all cells are there."""

    def run(self) -> None:
        if self.roundings < 1:
            raise PsaqError(f"--roundings {self.roundings}: must be at least 1")
        if self.images and len(self.images) != len(self.seeds):
            raise PsaqError(f"--images: {len(self.images)} runs for {len(self.seeds)} seeds; name one per seed")
        run = RunFolder(self.runs, "deit_tiny", replace(self, out=Path(), runs=Path()))
        finished = self.runs / "results.csv"
        results, bench = read_rows(finished, Result), Bench(self)
        for cell in self._cells():
            if cell not in {result.cell for result in results}:
                results.append(bench.measure(cell))
                write_rows(finished, results)
            print(line(next(result for result in results if result.cell == cell)))
        write_rows(self.out, results)
        run.finish({"table": results})

    def _cells(self) -> Iterator[Cell]:
        for precision in self.precisions:
            for method in (STANDARD, GAUSSIAN, PSAQ):
                for seed in (0,) if method == STANDARD else self.seeds:
                    yield from (Cell(method, seed, precision, rounding) for rounding in range(self.roundings))


class Bench:
    """The model, its reference logits and the calibration images, each made when first needed."""

    def __init__(self, options: DeitTiny):
        self.options = options
        self._last: tuple[Cell, nn.Module] | None = None

    @cached_property
    def model(self) -> nn.Module:
        return load_model("deit_tiny", self.options.weights)

    @cached_property
    def reference(self) -> tuple[Tensor, Tensor]:
        return self._logits(self.model, "FP")

    def measure(self, cell: Cell) -> Result:
        qmodel = self._quantised(replace(cell, rounding=0))
        reference, labels = self.reference
        changing = float_arithmetic(qmodel) if cell.rounding else []
        with nudged(changing, LAST_PLACE, torch.Generator().manual_seed(cell.rounding)):
            logits, _ = self._logits(qmodel, f"{cell.precision} {cell.method} {cell.seed}, rounding {cell.rounding}")
        report = compare(logits, labels, reference)
        figures: dict[str, Any] = {**asdict(cell), **report.as_dict(), "fp_top1": compare(reference, labels).top1}
        return Result(**figures)

    def _quantised(self, cell: Cell) -> nn.Module:
        """The model of a cell and all its roundings, kept until another one is asked for."""
        if self._last is None or self._last[0] != cell:
            # DeiT's ranges all hold zero, so that the sound recipe gives the same model, bit for bit.
            recipe = Recipe.paper(*parse_precision(cell.precision), faithful=True)
            self._last = cell, quantize(self.model, self.calibration_images(cell), recipe)
        return self._last[1]

    def calibration_images(self, cell: Cell) -> CalibrationImages:
        options = self.options
        if cell.method == STANDARD:
            files = picture_files([options.train])[:IMAGES]
            return load_pictures(files, self.model, crop_pct=options.train_crop_pct)
        if cell.method == GAUSSIAN:
            return gaussian_images(self.model, IMAGES, cell.seed)
        if options.images:
            return load_images(options.images[options.seeds.index(cell.seed)])
        config = SynthesisConfig(num_images=IMAGES, seed=cell.seed)
        return synthesize_into(options.runs / f"seed{cell.seed}", self.model, config, progress=True)

    def _logits(self, model: nn.Module, description: str) -> tuple[Tensor, Tensor]:
        dataset = imagenet(self.options.val, self.model, self.options.crop_pct)
        return collect_logits(model, dataset, batch_size=50, progress=True, description=description)


def line(result: Result) -> str:
    """A result in a line of text."""
    report = Report(result.top1, result.top5, result.n, result.agreement, result.logit_sqnr)
    which = f"{result.precision} {result.method:<9} seed {result.seed} rounding {result.rounding}"
    return f"{which}  {report}, FP {result.fp_top1:.2f} %"


if __name__ == "__main__":
    run_command(DeitTiny, prog="python -m psaq.experiments.deit_tiny")

"""Weights of few bits in groups: what a scale for every 128, 64 or 32 inputs gives a real DeiT-Tiny, and what it takes.

python -m psaq.experiments.groups --weights W.safetensors --val imagenet/val --images images/seed0
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from psaq.digests import json_digest
from psaq.errors import PsaqError
from psaq.evolution import EvolutionConfig, evolve
from psaq.experiments.rows import read_rows, write_rows
from psaq.experiments.starts import SharedStart
from psaq.images.imagenet import imagenet
from psaq.images.synthetic import SyntheticImages, load_images
from psaq.models.zoo import load_model
from psaq.program import run_command
from psaq.quantization.checkpoint import save
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe, parse_precision
from psaq.settings import as_json
from psaq.tasks.classification import collect_logits, compare

Method = Callable[[nn.Module, SyntheticImages, Recipe, Path], nn.Module]

EVOLUTION = EvolutionConfig(rounds=1)
WHOLE = 0
"""In place of a group: one scale for all inputs of an output channel."""


def _quantized(model: nn.Module, images: SyntheticImages, recipe: Recipe, _: Path) -> nn.Module:
    return quantize(model, images, recipe, progress=True)


def _evolved(model: nn.Module, _: SyntheticImages, recipe: Recipe, folder: Path) -> nn.Module:
    with SharedStart.find(folder.parent / "starts", model, recipe, EVOLUTION, "synthesised").shared_with(folder):
        return evolve(model, recipe, EVOLUTION, folder=folder, progress=True)[0]


METHODS: Mapping[str, Method] = {"quantize": _quantized, "evolve": _evolved}
"""Name → what makes a quantised model of a model, images, a recipe and a folder to go on in; `evolve` makes images of
its own, once for all recipes."""


@dataclass(frozen=True)
class Cell:
    """One measurement; inputs to a group, 0 where all share a scale."""

    method: str
    precision: str
    group: int

    @property
    def recipe(self) -> Recipe:
        return Recipe.accurate(*parse_precision(self.precision), group=self.group or None)

    @property
    def digest(self) -> str:
        """Of the recipe; of an evolution, of its configuration, too."""
        return self.recipe.digest + (json_digest(as_json(EVOLUTION))[:8] if self.method == "evolve" else "")


@dataclass(frozen=True)
class Row:
    """A cell and what came out of it; accuracy and agreement in percent, SQNR in dB."""

    method: str
    precision: str
    group: int
    recipe: str
    """Its digest, and the evolution's: a row of an earlier recipe is measured again."""
    weight_bits: float
    """Bits that a weight takes with its part of its group's scale."""
    megabytes: float
    """Of the file."""
    top1: float
    agreement: float
    logit_sqnr: float
    fp_top1: float
    n: int

    @property
    def cell(self) -> Cell:
        return Cell(self.method, self.precision, self.group)


@dataclass(frozen=True)
class Groups:
    """Quantise DeiT-Tiny with weights in groups; started again, measure only what is missing."""

    weights: Path
    """DeiT-Tiny's safetensors file."""
    val: Path
    """Labelled images to evaluate on, one folder per wnid."""
    images: Path
    """Calibration images: a run of ``psaq synthesize``."""
    crop_pct: float = 0.987
    """Of the evaluation."""
    precisions: tuple[str, ...] = ("W4A8", "W3A8", "W2A8")
    """Bits of weights and activations."""
    groups: tuple[int, ...] = (WHOLE, 128, 64, 32)
    """Inputs to a group; 0 for one scale an output channel."""
    methods: tuple[str, ...] = tuple(METHODS)
    """How models are quantised."""
    runs: Path = Path("runs/groups")
    """Where evolutions under way are kept."""
    out: Path = Path(__file__).parent / "results" / "groups.csv"
    """The table; rows that are there already are kept, unless the recipe has changed."""

    def run(self) -> None:
        if unknown := [method for method in self.methods if method not in METHODS]:
            raise PsaqError(f"methods {unknown}: choose from {', '.join(METHODS)}")
        rows = [row for row in read_rows(self.out, Row) if row.recipe == row.cell.digest]
        model, images = load_model("deit_tiny", self.weights), load_images(self.images)
        dataset = imagenet(self.val, model, self.crop_pct)
        reference, labels = collect_logits(model, dataset, batch_size=50, progress=True, description="FP")
        full = compare(reference, labels)
        for cell in self._missing(rows):
            qmodel = METHODS[cell.method](model, images, cell.recipe, self.runs / cell.digest)
            logits, _ = collect_logits(qmodel, dataset, batch_size=50, progress=True, description=str(cell))
            report = compare(logits, labels, reference)
            assert report.agreement is not None
            assert report.logit_sqnr is not None
            sizes = (cell.recipe.weight_bits, _megabytes(qmodel))
            found = (report.top1, report.agreement, report.logit_sqnr, full.top1)
            which = (cell.method, cell.precision, cell.group, cell.digest)
            rows.append(Row(*which, *sizes, *found, report.n))
            write_rows(self.out, sorted(rows, key=_place))
            print(rows[-1])

    def _missing(self, rows: list[Row]) -> list[Cell]:
        wanted = [Cell(*cell) for cell in product(self.methods, self.precisions, self.groups)]
        done = {row.cell for row in rows}
        return [cell for cell in wanted if cell not in done]


def _place(row: Row) -> tuple[str, int, float]:
    """Methods together, more bits first, fewer scales first."""
    return row.method, -parse_precision(row.precision)[0], -(row.group or math.inf)


def _megabytes(qmodel: nn.Module) -> float:
    with TemporaryDirectory() as folder:
        save(qmodel, file := Path(folder) / "q.safetensors")
        return file.stat().st_size / 1e6


if __name__ == "__main__":
    run_command(Groups, prog="python -m psaq.experiments.groups")

"""Boxes and pixels of real models: real pictures, noise and synthesised images to calibrate on, as Table 1 has it.

python -m psaq.experiments.dense --data dense
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.data import Dataset

from psaq.evaluation import evaluate
from psaq.experiments.rows import read_rows, write_rows
from psaq.images.batches import CalibrationImages, gaussian_images
from psaq.images.coco import coco
from psaq.images.masks import segmentation
from psaq.images.pictures import load_pictures, picture_files
from psaq.models.description import describe
from psaq.models.zoo import load_model
from psaq.program import run_command
from psaq.quantization.pipeline import quantize
from psaq.runs import RunFolder
from psaq.synthesis import SynthesisConfig
from psaq.synthesis.config import DEFAULT_STARTS
from psaq.synthesis.folder import synthesize_into
from psaq.tables.cells import Cell
from psaq.tables.comparison import GAUSSIAN, STANDARD

IMAGES = 32
"""Calibration images of every kind."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""How the segmenter's images are normalised."""
FIRST = ("W8A8", "W6A6")
"""Precisions at which one seed is enough."""

Which = Literal["detector", "segmenter"]


@dataclass(frozen=True)
class Result:
    """A cell and what came out of it."""

    model: str
    recipe: str
    precision: str
    method: str
    seed: int
    score: float
    """Box AP or mIoU, in percent."""
    fp_score: float
    """The same of the full-precision model."""
    second: float
    """AP50 or pixel accuracy, in percent."""
    agreement: float
    logit_sqnr: float
    n: int

    @property
    def cell(self) -> Cell:
        return Cell(self.model, self.recipe, self.precision, self.method, self.seed)


@dataclass(frozen=True)
class Dense:
    """Measure a detector and a segmenter. Killed and started again, it goes on with the cells that are missing."""

    data: Path
    """The folder with models.py, bccd and camvid."""
    models: tuple[Which, ...] = ("segmenter", "detector")
    recipes: tuple[Literal["paper", "accurate"], ...] = ("accurate", "paper")
    precisions: tuple[str, ...] = ("W8A8", "W4A8", "W4A4", "W6A6")
    methods: tuple[Literal["PSAQ", "Standard", "Gaussian"], ...] = ("PSAQ", "Standard", "Gaussian")
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of noise and synthesis, and of which real pictures; only the first at 8 and at 6 bits."""
    runs: Path = Path("runs/dense")
    """Where synthesised images are kept."""
    out: Path = Path(__file__).parent / "results" / "dense.csv"
    """The table, written anew after every cell; cells that it has are not measured again."""

    def run(self) -> None:
        run = RunFolder(self.runs, "dense", {"data": self.data.name})
        results = read_rows(self.out, Result)
        benches: dict[str, Bench] = {name: Bench(name, self) for name in self.models}
        for cell in self._cells():
            if cell not in {result.cell for result in results}:
                results.append(benches[cell.model].measure(cell))
                write_rows(self.out, sorted(results, key=_order))
            print(line(next(result for result in results if result.cell == cell)), flush=True)
        run.finish({"table": sorted(results, key=_order)})

    def _cells(self) -> Iterator[Cell]:
        for seed in self.seeds:
            for model in self.models:
                for recipe in self.recipes:
                    for precision in self.precisions:
                        if seed == self.seeds[0] or precision not in FIRST:
                            yield from (Cell(model, recipe, precision, method, seed) for method in self.methods)


class Bench:
    """A model, its pictures and the calibration images, each made when first needed."""

    def __init__(self, name: str, options: Dense):
        self.name = name
        self.options = options

    @cached_property
    def model(self) -> nn.Module:
        model = load_model(f"{self.options.data / 'models.py'}:{self.name}")
        return describe(model, mean=MEAN, std=STD) if self.name == "segmenter" else model

    @cached_property
    def pictures(self) -> Dataset[Any]:
        if self.name == "segmenter":
            folder = self.options.data / "camvid" / "val"
            return segmentation(folder / "images", folder / "masks", self.model)
        folder = self.options.data / "bccd"
        return coco(folder / "val", folder / "val.json", self.model)

    def measure(self, cell: Cell) -> Result:
        qmodel = quantize(self.model, self.calibration_images(cell), cell.quantiser, progress=True)
        report: Any = evaluate(qmodel, self.pictures, self.model, batch_size=8, progress=True)
        first, second = ("miou", "pixel_accuracy") if self.name == "segmenter" else ("ap", "ap50")
        return Result(
            **asdict(cell),
            score=round(getattr(report, first), 2),
            fp_score=round(getattr(report.reference, first), 2),
            second=round(getattr(report, second), 2),
            agreement=round(report.agreement, 2),
            logit_sqnr=round(report.logit_sqnr, 2),
            n=report.n,
        )

    def calibration_images(self, cell: Cell) -> CalibrationImages:
        if cell.method == STANDARD:
            train = "bccd/train" if self.name == "detector" else "camvid/train/images"
            return self._real(picture_files([self.options.data / train]), cell.seed)
        if cell.method == GAUSSIAN:
            return gaussian_images(self.model, IMAGES, cell.seed)
        start = DEFAULT_STARTS[self.name == "segmenter"]  # said, so that images from before are refused
        config = SynthesisConfig(num_images=IMAGES, seed=cell.seed, start=start)
        return synthesize_into(self.options.runs / f"{self.name}-seed{cell.seed}", self.model, config, progress=True)

    def _real(self, files: list[Path], seed: int) -> Tensor:
        """The first pictures for seed 0, the next ones for seed 1, and so on."""
        return load_pictures(files[seed * IMAGES : (seed + 1) * IMAGES], self.model, whole=True)


def line(result: Result) -> str:
    """A result in a line of text."""
    place = f"{result.model} {result.recipe} {result.precision} {result.method} seed {result.seed}"
    drop = result.fp_score - result.score
    figures = f"{result.score:.2f} (FP {result.fp_score:.2f}, drop {drop:.2f}), second {result.second:.2f}"
    return f"{place}: {figures}, agreement {result.agreement:.2f} %, {result.logit_sqnr:.1f} dB"


def _order(result: Result) -> tuple[Any, ...]:
    return tuple(vars(result.cell).values())


if __name__ == "__main__":
    run_command(Dense, prog="python -m psaq.experiments.dense")

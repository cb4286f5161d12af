"""What each part of the accurate recipe is worth: quantise a real model with that part off (or on), and evaluate.

python -m psaq.experiments.ablation --weights W.safetensors --val imagenet/val --images RUN
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from psaq.errors import PsaqError
from psaq.experiments.rows import read_rows, write_rows
from psaq.images.imagenet import imagenet
from psaq.images.synthetic import load_images
from psaq.models.zoo import load_model
from psaq.program import run_command
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe, parse_precision
from psaq.tasks.classification import collect_logits, compare

PARTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "weight scales from the largest": {"weight_scales": "max"},
    "images not on their own grid": {"pixel_grid": False},
    "uniform softmax levels": {"softmax": "uniform"},
    "one range for GELU": {"gelu": "uniform"},
    "weights to the nearest level": {"rounding": "nearest"},
    "no equalised attention": {"equalize": False},
    "equalised attention": {"equalize": True},
    "no bias compensation": {"bias_compensation": False},
    "no flat copies": {"flat_copies": 0},
    "no collages": {"collages": 0},
    "2 collages an image": {"collages": 2},
    "distillation, 100 steps": {"distillation_steps": 100},
    "reconstruction, 60 steps": {"reconstruction_steps": 60},
    "first and last layer as the others": {"ends": None},
    "channels not centred": {"centre": False},
    "no rotation": {"rotate": "none"},
    "residual streams rotated, heads not": {"rotate": "streams"},
    "residual streams and heads rotated": {"rotate": "all"},
    "no folded LayerNorm": {"fold": 0.0},
    "folded LayerNorm, strength 0.5": {"fold": 0.5},
    "folded LayerNorm": {"fold": 1.0},
    "full ranges": {"ranges": "full"},
    "searched ranges": {"ranges": "search"},
    "error correction by ridge regression, 1": {"error_correction": 1.0},
}
"""What is changed → the fields of `Recipe.accurate` that it changes."""


@dataclass(frozen=True)
class Row:
    """One recipe and what came out of it; accuracy and agreement in percent, SQNR in dB."""

    precision: str
    change: str
    recipe: str
    """The recipe's digest: a row of an earlier recipe is measured again."""
    top1: float
    agreement: float
    logit_sqnr: float
    fp_top1: float
    n: int


@dataclass(frozen=True)
class Ablation:
    """Quantise DeiT-Tiny with parts of the accurate recipe off or on; started again, measure only what is missing."""

    weights: Path
    """DeiT-Tiny's safetensors file."""
    val: Path
    """Labelled images to evaluate on, one folder per wnid."""
    images: Path
    """Calibration images: a run of ``psaq synthesize``."""
    model: str = "deit_tiny"
    """The model's name."""
    crop_pct: float = 0.987
    """Of the evaluation."""
    every: int = 1
    """Evaluate on one image in so many, in sorted path order."""
    precisions: tuple[str, ...] = ("W4A8",)
    """Bits of weights and activations."""
    changes: tuple[str, ...] = field(default_factory=lambda: tuple(PARTS))
    """Which changes to measure, by name; one that changes nothing at a precision is left out."""
    out: Path = Path(__file__).parent / "results" / "ablation_deit_tiny.csv"
    """The table; rows that are there already are kept, unless the recipe has changed."""

    def run(self) -> None:
        unknown = [change for change in self.changes if change not in PARTS]
        if unknown:
            raise PsaqError(f"changes {unknown}: choose from {', '.join(PARTS)}")
        rows = [row for row in read_rows(self.out, Row) if _is_current(row)]
        model = load_model(self.model, self.weights)
        images, dataset = load_images(self.images), self._dataset(model)
        reference, labels = collect_logits(model, dataset, batch_size=50, progress=True, description="FP")
        for precision, change in self._missing(rows):
            qmodel = quantize(model, images, _recipe(precision, change), progress=True)
            rows.append(_measured(qmodel, dataset, reference, labels, precision, change))
            write_rows(self.out, rows)
            print(rows[-1])

    def _dataset(self, model: nn.Module) -> Dataset[tuple[Tensor, int]]:
        dataset = imagenet(self.val, model, self.crop_pct)
        return Subset(dataset, range(0, len(dataset), self.every))  # type: ignore[arg-type]

    def _missing(self, rows: list[Row]) -> list[tuple[str, str]]:
        done = {(row.precision, row.change) for row in rows}
        wanted = [(precision, change) for precision in self.precisions for change in self.changes]
        return [pair for pair in wanted if pair not in done and _changes_something(*pair)]


def _recipe(precision: str, change: str) -> Recipe:
    return Recipe.accurate(*parse_precision(precision), **PARTS[change])


def _is_current(row: Row) -> bool:
    return row.change in PARTS and row.recipe == _recipe(row.precision, row.change).digest


def _changes_something(precision: str, change: str) -> bool:
    return not PARTS[change] or _recipe(precision, change) != Recipe.accurate(*parse_precision(precision))


def _measured(qmodel: nn.Module, dataset: Any, reference: Tensor, labels: Tensor, precision: str, change: str) -> Row:
    logits, _ = collect_logits(qmodel, dataset, batch_size=50, progress=True, description=f"{precision}, {change}")
    report, full = compare(logits, labels, reference), compare(reference, labels)
    assert report.agreement is not None
    assert report.logit_sqnr is not None
    figures = (report.top1, report.agreement, report.logit_sqnr, full.top1, report.n)
    return Row(precision, change, _recipe(precision, change).digest, *figures)


if __name__ == "__main__":
    run_command(Ablation, prog="python -m psaq.experiments.ablation")

"""Table 1's question: the same quantiser, calibrated on real images, on noise and on synthesised ones."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from psaq.files import write_csv
from psaq.images.batches import CalibrationImages
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe
from psaq.tasks.classification import Report, collect_logits, compare

STANDARD, GAUSSIAN, PSAQ = "Standard", "Gaussian", "PSAQ"
"""Table 1's columns: calibrated on real images, on noise, on synthesised images."""


@dataclass(frozen=True)
class Row:
    """One cell of Table 1, with the full-precision accuracy of the same run beside it."""

    model: str
    precision: str
    method: str
    fp_top1: float
    """Of the full-precision model on the same images, in percent."""
    report: Report

    def flat(self) -> dict[str, Any]:
        """The row's figures by column name, for CSV and JSON."""
        place = {name: getattr(self, name) for name in ("model", "precision", "method", "fp_top1")}
        return place | self.report.as_dict()


def compare_sources(
    name: str,
    model: nn.Module,
    sources: Mapping[str, CalibrationImages],
    recipes: Sequence[Recipe],
    dataset: Dataset[tuple[Tensor, int]],
    *,
    batch_size: int = 50,
    progress: bool = False,
) -> Iterator[Row]:
    """Quantise ``model`` once per recipe and source, and evaluate each on ``dataset``: a row as each is done.

    Args:
        name: what the rows call the model.
        sources: calibration images by method name.

    Raises:
        PsaqError: as `quantize` and `evaluate` do.
    """
    reference, labels = collect_logits(model, dataset, batch_size=batch_size, progress=progress, description=name)
    fp_top1 = compare(reference, labels).top1
    for recipe in recipes:
        for method, images in sources.items():
            precision = f"W{recipe.weights}A{recipe.activations}"
            quantised = quantize(model, images, recipe, batch_size=batch_size)
            logits, _ = collect_logits(
                quantised,
                dataset,
                batch_size=batch_size,
                progress=progress,
                description=f"{name} {precision} {method}",
            )
            yield Row(name, precision, method, fp_top1, compare(logits, labels, reference))


def table(rows: Sequence[Row]) -> str:
    """The rows as text, one model and precision a line, one method a column: top-1 (agreement, SQNR)."""
    methods = list(dict.fromkeys(row.method for row in rows))
    lines = [f"{'model':<12}{'FP':>7}  {'':<7}" + "".join(f"{method:>28}" for method in methods)]
    for model, precision in dict.fromkeys((row.model, row.precision) for row in rows):
        cells = {row.method: row for row in rows if (row.model, row.precision) == (model, precision)}
        fp_top1 = next(iter(cells.values())).fp_top1
        text = "".join(f"{_cell(cells[method]) if method in cells else '':>28}" for method in methods)
        lines.append(f"{model:<12}{fp_top1:>7.2f}  {precision:<7}{text}")
    lines.append("top-1 in % (agreement with FP in %, logit SQNR in dB)")
    return "\n".join(lines)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """The rows as CSV, whole or not at all."""
    write_csv(path, rows[0].flat(), (row.flat() for row in rows))


def _cell(row: Row) -> str:
    return f"{row.report.top1:.2f} ({row.report.agreement:.1f}, {row.report.logit_sqnr:.1f})"

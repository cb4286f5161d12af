"""From measured cells to a table: means over seeds beside the paper's figures, as rows, Markdown and CSV."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from psaq.files import write_csv
from psaq.tables.cells import Cell, Result
from psaq.tables.published import FULL_PRECISION, published_top1
from psaq.tasks.classification import Report

_FIGURES = ("top1", "top5", "agreement", "logit_sqnr")


def mean_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """A row per model, recipe, precision and method: means over seeds, and the standard deviation of top-1.

    The deviation is the sample's (n − 1), and None for a single seed.
    """
    return [_mean_row(list(group)) for _, group in groupby(results, _without_seed)]


def write_cells(path: Path, results: Sequence[Result]) -> None:
    """Every cell as a line of CSV, whole or not at all."""
    rows = [_flat(result) for result in results]
    write_csv(path, rows[0], rows)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as aligned Markdown, a table per recipe and precision: top-1 ± deviation, the paper's in brackets."""
    tables = dict.fromkeys((row["recipe"], row["precision"]) for row in rows)
    return "\n\n".join(_table(place, [row for row in rows if _place(row) == place]) for place in tables)


def _table(place: tuple[str, str], rows: Sequence[Mapping[str, Any]]) -> str:
    recipe, precision = place
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [["model", "FP", *methods]]
    for model, group in groupby(rows, lambda row: row["model"]):
        cells = {row["method"]: row for row in group}
        full = _beside(f"{next(iter(cells.values()))['fp_top1']:.2f}", FULL_PRECISION.get(model))
        lines.append([model, full, *(_cell(cells[method]) if method in cells else "" for method in methods)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    text = [f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines]
    return "\n".join([f"**{recipe} recipe, {precision}**", "", *text])


def _cell(row: Mapping[str, Any]) -> str:
    deviation = "" if row["top1_std"] is None else f" ± {row['top1_std']:.2f}"
    return _beside(f"{row['top1']:.2f}{deviation}", row["paper_top1"])


def _beside(measured: str, published: float | None) -> str:
    return measured if published is None else f"{measured} [{published:.2f}]"


def _mean_row(results: Sequence[Result]) -> dict[str, Any]:
    first = results[0]
    top1 = [result.report.top1 for result in results]
    figures = {name: fmean(getattr(result.report, name) for result in results) for name in _FIGURES}
    return {
        **{name: value for name, value in asdict(first.cell).items() if name != "seed"},
        "seeds": len(results),
        "fp_top1": first.fp_top1,
        **figures,
        "top1_std": stdev(top1) if len(top1) > 1 else None,
        "n": first.report.n,
        "paper_top1": _published(first.cell),
    }


def _flat(result: Result) -> dict[str, Any]:
    report: Report = result.report
    own = {**asdict(result.cell), "fp_top1": result.fp_top1, **report.as_dict()}
    return {**own, "paper_top1": _published(result.cell)}


def _published(cell: Cell) -> float | None:
    return published_top1(cell.model, cell.precision, cell.method)


def _without_seed(result: Result) -> tuple[str, ...]:
    cell = result.cell
    return (cell.model, cell.recipe, cell.precision, cell.method)


def _place(row: Mapping[str, Any]) -> tuple[str, str]:
    return (row["recipe"], row["precision"])

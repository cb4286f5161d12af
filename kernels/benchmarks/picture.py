"""One picture of the four tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


def draw(path: Path, tables: Mapping[str, Sequence[Row]], device: str) -> None:
    """Bars of time, a panel for each table: shorter is better."""
    import matplotlib as mpl
    from matplotlib import pyplot

    mpl.use("Agg")
    panels = {
        "similarity_density": ("ms", _bars(tables["similarity_density"], ("model", "what", "pass"), "median_us", 1e-3)),
        "quant_linear": ("µs", _bars(_one_batch(tables["quant_linear"]), ("layer", "variant"), "median_us")),
        "inference": ("ms", _bars(_one_batch(tables["inference"]), ("variant", "way"), "ms")),
        "synthesis": ("ms a step", _bars(tables["synthesis"], ("what",), "ms")),
    }
    longest = max(len(bars) for _, bars in panels.values())
    figure, axes = pyplot.subplots(1, 4, figsize=(26, 3 + 0.2 * longest), layout="constrained")
    for axis, (name, (unit, bars)) in zip(axes, panels.items(), strict=True):
        axis.barh(list(bars), list(bars.values()))
        axis.invert_yaxis()
        axis.set(title=name, xlabel=unit, xscale="log" if bars else "linear")
        axis.tick_params("y", labelsize=6)
    figure.suptitle(device)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def _one_batch(rows: Sequence[Row]) -> list[Row]:
    """Those of the batch that was measured first."""
    return [row for row in rows if row["images"] == rows[0]["images"]]


def _bars(rows: Sequence[Row], names: tuple[str, ...], value: str, scale: float = 1.0) -> dict[str, float]:
    return {
        " · ".join([*(row[name] for name in names), row["configuration"]]): scale * float(row[value])
        for row in rows
        if row.get(value)
    }

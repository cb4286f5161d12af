"""Table 1 at a glance: accuracy by source of calibration images, model by model, beside full precision."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from psaq_plots.canvas import new_figure
from psaq_plots.checks import require
from psaq_plots.style import Style, find_style, styled


def accuracy_figure(
    accuracy: Mapping[str, Sequence[float]],
    rows: Sequence[str],
    full_precision: Sequence[float] | None = None,
    published: Mapping[str, Sequence[float]] | None = None,
    style: str | Style = "paper",
) -> Figure:
    """A row per model and precision, a dot per source of calibration images, a bar at full precision.

    Args:
        accuracy: source ("noise", "real", "generated", …) → top-1 in percent per row; NaN where not measured.
        rows: what each row is.
        full_precision: top-1 in percent of the unquantised model per row.
        published: the paper's top-1 for the same rows, drawn hollow.

    Raises:
        ValueError: no row, or numbers that are not one per row.
    """
    style = find_style(style)
    published = published or {}
    require(len(rows) > 0 and len(accuracy) > 0, "accuracy: holds no row; give at least one")
    full = rows if full_precision is None else full_precision
    for name, values in [*accuracy.items(), *published.items(), ("full_precision", full)]:
        require(len(values) == len(rows), f"{name}: {len(values)} numbers for {len(rows)} rows; give one each")
    places = np.arange(len(rows))
    with styled(style):
        figure = new_figure(style, height=(len(rows) * 2 + 5) * style.font_size / 72)
        panel = figure.subplots()
        panel.hlines(places, 0, 100, color=style.rule, linewidth=0.4 * style.scale, zorder=1)
        if full_precision is not None:
            panel.plot(full_precision, places, "|", color=style.foreground, ms=7 * style.scale, label="full precision")
        for position, source in enumerate([*accuracy, *(name for name in published if name not in accuracy)]):
            colour = style.colour(source, position)
            size = 14 * style.scale**2
            if source in published:
                panel.scatter(published[source], places, s=2.4 * size, facecolors="none", edgecolors=colour, zorder=2)
            if source in accuracy:
                panel.scatter(accuracy[source], places, s=size, color=colour, label=source, zorder=3)
        panel.set_yticks(places, list(rows))
        panel.set_ylim(len(rows) - 0.5, -0.5)
        panel.set_xlim(0, 100)
        panel.set_xlabel("top-1 accuracy (%)" + (", hollow: as published" if published else ""))
        panel.spines["left"].set_visible(False)
        figure.legend(loc="outside upper center", ncols=4, borderpad=0.3, columnspacing=1.2, handletextpad=0.4)
    return figure

"""A tidy grid of panels with shared axes, one per layer."""

from collections.abc import Sequence
from math import ceil

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from psaq_plots.style import Style

PANEL_ASPECT = 0.82


def panel_grid(figure: Figure, titles: Sequence[str], style: Style, columns: int | None = None) -> list[Axes]:
    """Fill ``figure`` with one titled panel per entry, sharing both axes, and set its height to fit.

    Tick labels stand only at the left column and below the lowest panel of each column.
    """
    columns = min(columns or default_columns(len(titles)), len(titles))
    rows = ceil(len(titles) / columns)
    text = 5.5 * style.font_size / 72
    figure.set_size_inches(style.width, text + rows * PANEL_ASPECT * (style.width - text) / columns)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    panels, spare = list(axes.flat[: len(titles)]), axes.flat[len(titles) :]
    for panel in spare:
        panel.remove()
    for position, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        panel.text(0, 1.03, title, transform=panel.transAxes, fontsize=0.9 * style.font_size, va="bottom")
        panel.tick_params(labelleft=position % columns == 0, labelbottom=position + columns >= len(titles))
    return panels


def default_columns(panels: int) -> int:
    """Three panels per row up to a dozen, four above: wide enough to read in one column of a paper."""
    return min(panels, 2 if panels <= 4 else 3 if panels <= 12 else 4)


def fit_titles(figure: Figure, panels: Sequence[Axes], smallest: float = 4.0) -> None:
    """Shrink the panels' titles, all alike, until the widest is no wider than its panel."""
    figure.draw_without_rendering()
    titles = [panel.texts[0] for panel in panels]
    room = min(
        panel.get_window_extent().width / max(title.get_window_extent().width, 1)
        for panel, title in zip(panels, titles, strict=True)
    )
    for title in titles:
        title.set_fontsize(max(title.get_fontsize() * min(1.0, 0.98 * room), smallest))

"""A tidy grid of panels with shared axes, one per layer."""

from collections.abc import Callable, Sequence
from math import ceil

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from psaq_plots.canvas import new_figure
from psaq_plots.style import Style

PANEL_ASPECT = 0.82
SMALLEST_TEXT = 4.0


def panel_grid(figure: Figure, titles: Sequence[str], style: Style, columns: int | None = None) -> list[Axes]:
    """Fill ``figure`` with one titled panel per entry, sharing both axes, and set its height to fit.

    Tick labels stand only at the left column and below the lowest panel of each column.
    """
    columns = min(columns or default_columns(len(titles)), len(titles))
    rows = ceil(len(titles) / columns)
    text = 5.5 * style.font_size / 72
    width = (style.width - text) / columns
    figure.set_size_inches(style.width, text + rows * PANEL_ASPECT * width)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    panels, spare = list(axes.flat[: len(titles)]), axes.flat[len(titles) :]
    for panel in spare:
        panel.remove()
    for position, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        panel.text(0, 1.03, title, transform=panel.transAxes, fontsize=0.9 * style.font_size, va="bottom")
        panel.tick_params(labelleft=position % columns == 0, labelbottom=position + columns >= len(titles))
    shrink_to(0.92 * width, figure, [panel.texts[0] for panel in panels])
    return panels


def curve_panels(titles: Sequence[str], style: Style, steps: str) -> tuple[Figure, list[Axes]]:
    """A figure of wide panels, two to a row, that share the horizontal axis: one curve each over ``steps``."""
    columns = min(len(titles), 2)
    rows = ceil(len(titles) / columns)
    figure = new_figure(style, height=rows * 0.62 * style.width / columns)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True)
    panels, spare = list(axes.flat[: len(titles)]), axes.flat[len(titles) :]
    for panel in spare:
        panel.remove()
    for position, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        panel.set_title(title, loc="left", fontsize=0.9 * style.font_size, pad=2 * style.scale)
        panel.grid(True)
        if position + columns >= len(titles):
            panel.set_xlabel(steps)
            panel.tick_params(labelbottom=True)
    return figure, panels


def default_columns(panels: int) -> int:
    """Three panels per row up to a dozen, four above: wide enough to read in one column of a paper."""
    return min(panels, 2 if panels <= 4 else 3 if panels <= 12 else 4)


def shrink_to(width: float, figure: Figure, texts: Sequence[Text]) -> None:
    """Make ``texts`` smaller, all alike, until the widest takes ``width`` inches: but never too small to read."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    widest = max(text.get_window_extent(renderer).width for text in texts) / figure.dpi
    for text in texts:
        size = float(text.get_fontsize()) * min(1.0, width / max(widest, 1e-6))
        text.set_fontsize(max(size, SMALLEST_TEXT))


def cut_to(length: float, figure: Figure, text: Text) -> None:
    """Cut the lines of ``text`` that are longer than ``length`` inches, and end them in "…"."""
    renderer = FigureCanvasAgg(figure).get_renderer()

    def fits(line: str) -> bool:
        text.set_text(line)
        box = text.get_window_extent(renderer)
        return max(box.width, box.height) <= length * figure.dpi

    text.set_text("\n".join([_cut(line, fits) for line in text.get_text().split("\n")]))


def _cut(line: str, fits: Callable[[str], bool]) -> str:
    if fits(line):
        return line
    shorter = (line[:end].rstrip(" ,") + "…" for end in range(len(line) - 1, 0, -1))
    return next((candidate for candidate in shorter if fits(candidate)), "…")

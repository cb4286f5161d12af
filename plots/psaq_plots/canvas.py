"""Figures without a screen: made by matplotlib's object interface, written with their fonts inside."""

import io
from pathlib import Path
from typing import IO, Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from psaq_plots.style import Style

FORMATS = (".png", ".svg", ".pdf")
"""The endings of files that a figure is written to."""

# Fonts travel inside the file: TrueType in PDF, outlines in SVG. No date, and ids that do not vary: the same
# figure is the same file.
_EMBEDDED: dict[Any, Any] = {"pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "psaq"}
_NO_DATE: dict[str, dict[str, str | None]] = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def new_figure(style: Style, height: float, width: float | None = None) -> Figure:
    """An empty figure of ``width`` × ``height`` inches that no window manager knows of."""
    gap = 0.02 * style.scale
    layout = ConstrainedLayoutEngine(w_pad=gap, h_pad=gap, wspace=0.06, hspace=0.02)
    figure = Figure(figsize=(width or style.width, height), dpi=style.dpi, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def check_format(path: Path) -> None:
    """Raises ValueError where ``path`` does not end in .png, .svg or .pdf."""
    if Path(path).suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: a figure ends in {', '.join(FORMATS)}; give it one of these endings")


def save_figure(figure: Figure, path: Path) -> None:
    """Write ``figure`` as png, svg or pdf, as ``path`` ends, fonts embedded.

    Raises:
        ValueError: another ending.
        OSError: ``path`` cannot be written.
    """
    check_format(path)
    _save(figure, path, Path(path).suffix.lower())


def figure_bytes(figure: Figure, ending: str) -> bytes:
    """What `save_figure` would write to a file of this ending."""
    check_format(Path(f"figure{ending}"))
    stream = io.BytesIO()
    _save(figure, stream, ending)
    return stream.getvalue()


def _save(figure: Figure, target: Path | IO[bytes], ending: str) -> None:
    with mpl.rc_context(_EMBEDDED):
        figure.savefig(target, format=ending.removeprefix("."), dpi=figure.dpi, metadata=_NO_DATE[ending])

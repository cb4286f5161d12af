"""The looks: sizes, colours and fonts, as plain data. One context manager applies them to a figure's making."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl

# Okabe and Ito's palette (jfly.uni-koeln.de/color): told apart under every common colour blindness.
# Each source also has its own line, so that a grey print still reads.
_LINES = {"noise": (0, (2.2, 1.2)), "real": "solid", "generated": "solid"}
_WIDTHS = {"noise": 0.9, "real": 0.9, "generated": 1.2}


@dataclass(frozen=True)
class Style:
    """What a figure looks like. Lengths in inches, text and lines in points."""

    name: str
    width: float = 3.4
    font_size: float = 6.5
    scale: float = 1.0
    dpi: int = 300
    background: str = "white"
    foreground: str = "#1a1a1a"
    muted: str = "#8a8a8a"
    rule: str = "#dddddd"
    colours: dict[str, str] = field(
        default_factory=lambda: {"noise": "#E69F00", "real": "#0072B2", "generated": "#C2410C"}
    )
    others: tuple[str, ...] = ("#009E73", "#CC79A7", "#56B4E9", "#999999")
    heat: str = "viridis"

    def colour(self, source: str, position: int = 0) -> str:
        """The colour of a source of images; a source of another name takes the ``position``-th spare colour."""
        return self.colours.get(source, self.others[position % len(self.others)])

    def line(self, source: str) -> dict[str, object]:
        """The dash pattern and width of a source's curve."""
        return {
            "linestyle": _LINES.get(source, "solid"),
            "linewidth": _WIDTHS.get(source, 1.0) * self.scale,
        }


PAPER = Style("paper")
DARK = Style(
    "dark",
    background="#14171c",
    foreground="#e8e8e8",
    muted="#9aa0a6",
    rule="#363b43",
    colours={"noise": "#F0B429", "real": "#56B4E9", "generated": "#FF7043"},
    heat="magma",
)
TALK = Style("talk", width=10.0, font_size=14.0, scale=2.2, dpi=150)
STYLES: dict[str, Style] = {style.name: style for style in (PAPER, DARK, TALK)}
"""Name → look, of paper, screens and talks."""


def find_style(style: str | Style) -> Style:
    """The style of a name. Raises ValueError where there is none."""
    if isinstance(style, Style):
        return style
    if style not in STYLES:
        raise ValueError(f"style {style!r} is unknown; choose one of {', '.join(STYLES)}")
    return STYLES[style]


@contextmanager
def styled(style: Style) -> Iterator[None]:
    """Matplotlib's settings for ``style``, and for nothing outside this block."""
    with mpl.rc_context():
        mpl.rcdefaults()  # a user's matplotlibrc changes no figure
        mpl.rcParams.update(_settings(style))
        yield


def _settings(style: Style) -> dict[Any, Any]:
    small = style.font_size * 0.86
    line = 0.5 * style.scale
    return {
        **dict.fromkeys(("figure.facecolor", "axes.facecolor"), style.background),
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), style.foreground),
        **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), style.muted),
        **dict.fromkeys(("font.size", "axes.labelsize", "axes.titlesize", "legend.fontsize"), style.font_size),
        **dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), small),
        **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), line),
        **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 2 * style.scale),
        **dict.fromkeys(("xtick.major.pad", "ytick.major.pad"), 1.5 * style.scale),
        **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
        "grid.color": style.rule,
        "grid.linewidth": 0.8 * line,
        "axes.axisbelow": True,
        "figure.dpi": style.dpi,
        "savefig.dpi": style.dpi,
    }

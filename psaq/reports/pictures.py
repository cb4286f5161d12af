"""Pictures as data URIs, so that they travel inside the page."""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from psaq.errors import PsaqError
from psaq_plots import figure_bytes

TITLES = {
    "predictions": (
        "What both models find",
        "Left in full precision, right quantised; vermilion marks what differs: classes, boxes found by one alone.",
    ),
    "samples": ("Synthesised images", "True colours; below each its class and the model's confidence in it (Fig. 2)."),
    "film": ("From noise to image", "The first images after some of the steps."),
    "density": (
        "Patch-similarity density",
        "Mean over images, band from the 10% to the 90% quantile; one panel per layer (Fig. 3).",
    ),
    "similarity": (
        "Patch similarity over an image",
        "Per layer: Γ between patches above, the marked patch's similarity to the others below.",
    ),
}


@dataclass(frozen=True)
class Picture:
    """A picture of the page; ``dark`` takes its place on a dark screen."""

    title: str
    caption: str
    light: str
    dark: str | None = None


def drawn(title: str, caption: str, draw: Callable[[str], Figure]) -> Picture:
    """A figure drawn for this page, once for light and once for dark screens. ``draw`` takes the style's name."""
    return Picture(title, caption, _svg(draw("paper")), _svg(draw("dark")))


def found(file: Path, where: str = "") -> Picture:
    """A picture file of the run. Raises PsaqError where it cannot be read."""
    title, caption = TITLES.get(file.stem, (file.stem.replace("_", " ").capitalize(), ""))
    try:
        content = file.read_bytes()
    except OSError as error:
        raise PsaqError(f"{file}: cannot be read ({error.strerror}); remove it or write it anew") from error
    return Picture(titled(title, where), caption, _data_uri("image/png", content))


def titled(title: str, where: str) -> str:
    """A title that also says of which part of the run, where it is of one."""
    return f"{title}: {where}" if where else title


def _svg(figure: Figure) -> str:
    return _data_uri("image/svg+xml", figure_bytes(figure, ".svg"))


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"

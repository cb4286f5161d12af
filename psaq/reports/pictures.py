"""Pictures as data URIs, so that they travel inside the page."""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from psaq.errors import PsaqError
from psaq_plots import figure_bytes


@dataclass(frozen=True)
class Kind:
    """What a run's picture is called, how to read it, and what it shows to who cannot see it."""

    title: str
    reading: str = ""
    shows: str = ""


TITLES = {
    "predictions": Kind(
        "What both models find",
        "Left in full precision, right quantised: vermilion marks what differs, classes and boxes found by one alone.",
        "Pairs of the same pictures with what each model finds in them drawn over.",
    ),
    "samples": Kind(
        "Synthesised images",
        "Made from the model alone, in true colours: below each the class it was made for and how sure the model is "
        "that it shows it (Fig. 2).",
        "A grid of synthesised images, each above its class and the model's confidence.",
    ),
    "strip": Kind(
        "New images by round",
        "The first new images of every round: of all that are diverse, those on which both models disagreed most.",
        "A grid of synthesised images, a row for each round.",
    ),
    "film": Kind(
        "From noise to image",
        "Each row is one image, from the noise it started as, on the left, to the last step, on the right.",
        "Rows of the same image after more and more steps.",
    ),
    "density": Kind(
        "Patch-similarity density",
        "How often two patches of an image are so alike, one panel per layer: one narrow peak says that a layer finds "
        "all patches alike, two that it tells objects from their background. Line: mean over images; band: from "
        "the 10% to the 90% quantile (Fig. 3).",
        "One panel of density curves per layer, one curve per source of images.",
    ),
    "similarity": Kind(
        "Patch similarity over an image",
        "Per layer: above, how alike (Γ) any two patches are; below, how alike the marked patch is to every other.",
        "Per layer a matrix of similarities above a map of one patch's similarity to the others.",
    ),
    "sensitivity": Kind(
        "What each layer costs",
        "Each layer was quantised alone: the shorter its bar, the more the answers lose.",
        "One bar per layer for the answers' signal to noise; where there are classes, one for those that stay.",
    ),
}


@dataclass(frozen=True)
class Picture:
    """A picture of the page; ``dark`` takes its place on a dark screen.

    Attributes:
        shows: what stands for the picture where it cannot be seen.
        part: of which part of the run it is; empty for the whole.
        stem: the file's name without its ending; empty for a picture drawn for the page.
    """

    title: str
    caption: str
    light: str
    dark: str | None = None
    shows: str = ""
    part: str = ""
    stem: str = ""

    @property
    def alt(self) -> str:
        """The picture in words: its title, of what, and what it shows."""
        return f"{titled(self.title, self.part)}. {self.shows}".strip()


def drawn(title: str, caption: str, draw: Callable[[str], Figure], *, shows: str = "", part: str = "") -> Picture:
    """A figure drawn for this page, once for light and once for dark screens. ``draw`` takes the style's name."""
    return Picture(title, caption, _svg(draw("paper")), _svg(draw("dark")), shows, part)


def found(file: Path, part: str = "") -> Picture:
    """A picture file of the run. Raises PsaqError where it cannot be read."""
    kind = TITLES.get(file.stem) or Kind(file.stem.replace("_", " ").strip().capitalize() or file.name)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise PsaqError(f"{file}: cannot be read ({error.strerror}); remove it or write it anew") from error
    light = _data_uri("image/png", content)
    return Picture(kind.title, kind.reading, light, shows=kind.shows, part=part, stem=file.stem)


def titled(title: str, where: str) -> str:
    """A title that also says of which part of the run, where it is of one."""
    return f"{title}: {where}" if where else title


def _svg(figure: Figure) -> str:
    return _data_uri("image/svg+xml", figure_bytes(figure, ".svg"))


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"

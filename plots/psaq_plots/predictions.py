"""What two models find in the same pictures, beside each other: classes of pixels, or boxes; differences marked."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy import ndarray

from psaq_plots.canvas import new_figure
from psaq_plots.checks import require
from psaq_plots.samples import require_pictures, show_picture
from psaq_plots.style import Style, find_style, styled

# Okabe and Ito's palette without vermilion, which marks differences and nothing else, then darker ones of it.
CLASS_COLOURS = (
    *("#0072B2", "#F0E442", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"),
    *("#003A5C", "#8A8420", "#00513B", "#7A3F62", "#2A6F94", "#7F5800"),
)
DIFFERENT = "#D55E00"
OPACITY = 0.55
LEGEND_COLUMNS = 4
TALLEST = 2.0  # times its width a picture is drawn; a higher one gets narrower
Picture = UInt8[ndarray, "height width 3"]


@dataclass(frozen=True)
class DrawnBoxes:
    """The boxes that one model finds in a picture.

    Attributes:
        corners: left, top, right, bottom, in the picture's pixels.
        classes: each box's, as an index into the names.
        partnered: whether the other model found it, too.
    """

    corners: Float[ndarray, "boxes 4"]
    classes: Int[ndarray, "boxes"]
    partnered: Sequence[bool]


def pixels_figure(
    pictures: Sequence[Picture],
    found: Sequence[tuple[Int[ndarray, "height width"], Int[ndarray, "height width"]]],
    names: Sequence[str],
    titles: tuple[str, str] = ("full precision", "quantised"),
    style: str | Style = "paper",
) -> Figure:
    """A row for each picture: the classes of its pixels by one model and by the other. Pixels to which the second gives
    another class are marked there, and their share is said.

    Args:
        found: for each picture the classes by both models, as indices into the names.
        names: the classes'.

    Raises:
        ValueError: no picture, maps of another size than their picture, or a class without a name.
    """
    style = find_style(style)
    for number, (picture, maps) in enumerate(zip(pictures, found, strict=True)):
        shapes = {each.shape for each in maps} | {picture.shape[:2]}
        require(len(shapes) == 1, f"picture {number}: sizes {sorted(shapes)} differ; give maps of the picture's size")
        require(max(int(each.max()) for each in maps) < len(names), f"picture {number}: holds a class without a name")
    colours = _coloured({int(index) for maps in found for each in maps for index in np.unique(each)})
    with styled(style):
        figure, panels = _panels(pictures, titles, len(colours), style)
        for (left, right), picture, (one, other) in zip(panels, pictures, found, strict=True):
            show_picture(left, _overlaid(picture, one, colours))
            show_picture(right, _overlaid(picture, other, colours, one != other))
            _note(right, f"{100 * float((one != other).mean()):.1f} % of pixels differ", style)
        _legend(figure, [(names[index], colour) for index, colour in colours.items()])
    return figure


def boxes_figure(
    pictures: Sequence[Picture],
    found: Sequence[tuple[DrawnBoxes, DrawnBoxes]],
    names: Sequence[str],
    titles: tuple[str, str] = ("full precision", "quantised"),
    style: str | Style = "paper",
) -> Figure:
    """A row for each picture: the boxes that one model finds in it, and the other's. Those that only one of them finds
    are marked, and their number is said.

    Raises:
        ValueError: no picture, or a class without a name.
    """
    style = find_style(style)
    classes = [int(index) for both in found for boxes in both for index in boxes.classes]
    require(
        max(classes, default=0) < len(names), f"classes up to {max(classes, default=0)}: {len(names)} names are given"
    )
    colours = _coloured(set(classes))
    with styled(style):
        figure, panels = _panels(pictures, titles, len(colours), style)
        for row, picture, both in zip(panels, pictures, found, strict=True):
            for panel, boxes in zip(row, both, strict=True):
                show_picture(panel, picture)
                _draw(panel, boxes, colours, style)
                alone = sum(not partnered for partnered in boxes.partnered)
                count = len(boxes.classes)
                _note(panel, f"{count} {'box' if count == 1 else 'boxes'}, {alone} here alone", style)
        _legend(figure, [(names[index], colour) for index, colour in colours.items()])
    return figure


def _panels(
    pictures: Sequence[Picture], titles: tuple[str, str], classes: int, style: Style
) -> tuple[Figure, list[list[Axes]]]:
    require(len(pictures) > 0, "pictures: there are none; give at least one")
    for picture in pictures:
        require_pictures("pictures", picture, 3)
    line = 1.4 * style.font_size / 72
    side = 0.48 * style.width
    heights = [side * min(picture.shape[0] / picture.shape[1], TALLEST) + line for picture in pictures]
    legend = (1 + classes // LEGEND_COLUMNS) * line
    figure = new_figure(style, height=sum(heights) + 2 * line + legend)
    axes = figure.subplots(len(pictures), 2, squeeze=False, gridspec_kw={"height_ratios": heights})
    for panel, title in zip(axes[0], titles, strict=True):
        panel.set_title(title, pad=2 * style.scale)
    return figure, [list(row) for row in axes]


def _overlaid(
    picture: Picture, classes: Int[ndarray, "height width"], colours: dict[int, str], marked: ndarray | None = None
) -> Picture:
    """The picture in greys under its classes' colours."""
    mixed = np.broadcast_to((1 - OPACITY) * picture.mean(-1, keepdims=True), picture.shape).copy()
    for index, colour in colours.items():
        mixed[classes == index] += OPACITY * 255 * np.array(mpl.colors.to_rgb(colour))
    if marked is not None:
        mixed[marked] = 255 * np.array(mpl.colors.to_rgb(DIFFERENT))
    return mixed.round().astype(np.uint8)


def _draw(panel: Axes, boxes: DrawnBoxes, colours: dict[int, str], style: Style) -> None:
    for (left, top, right, bottom), index, partnered in zip(boxes.corners, boxes.classes, boxes.partnered, strict=True):
        colour, line, width = (colours[int(index)], "solid", 0.8) if partnered else (DIFFERENT, (0, (2, 1)), 1.6)
        panel.add_patch(
            Rectangle(
                (left, top),
                right - left,
                bottom - top,
                fill=False,
                edgecolor=colour,
                linewidth=width * style.scale,
                linestyle=line,
            )
        )


def _note(panel: Axes, text: str, style: Style) -> None:
    panel.set_xlabel(text, labelpad=1.5 * style.scale)


def _legend(figure: Figure, colours: Sequence[tuple[str, str]]) -> None:
    handles = [Patch(color=colour, label=name) for name, colour in colours]
    handles.append(Patch(color=DIFFERENT, label="differs"))
    figure.legend(handles=handles, loc="outside lower center", ncols=LEGEND_COLUMNS, handlelength=1, columnspacing=1)


def _coloured(classes: set[int]) -> dict[int, str]:
    """A colour for each class that is shown, the brightest first; beyond twelve they come again."""
    return {index: CLASS_COLOURS[place % len(CLASS_COLOURS)] for place, index in enumerate(sorted(classes))}

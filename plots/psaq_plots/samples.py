"""Fig. 2: images in true colours, each under what it shows; and the strip from noise to image."""

from collections.abc import Sequence
from math import ceil

from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy import ndarray

from psaq_plots.canvas import new_figure
from psaq_plots.checks import require
from psaq_plots.panels import cut_to
from psaq_plots.style import Style, find_style, styled

CAPTION = 0.75  # of the style's font size
PICTURE_SHARE = 0.93  # of a column's width; the rest is the gap beside it


def samples_figure(
    images: UInt8[ndarray, "images height width 3"],
    captions: Sequence[str] | None = None,
    columns: int | None = None,
    style: str | Style = "paper",
) -> Figure:
    """A grid of images, each with a caption below where there are captions.

    Args:
        images: true colours.
        captions: one for each image; two lines at most read well.
        columns: images per row; close to a square grid, and no more than 8, where None.

    Raises:
        ValueError: no image, another shape or type, or another number of captions.
    """
    style = find_style(style)
    require_pictures("images", images, 4)
    captions = captions if captions is not None else [""] * len(images)
    require(len(captions) == len(images), f"captions: {len(captions)} for {len(images)} images; give one each")
    columns = min(columns or min(ceil((2 * len(images)) ** 0.5), 8), len(images))
    rows = ceil(len(images) / columns)
    lines = max(caption.count("\n") + 1 if caption else 0 for caption in captions)
    side = PICTURE_SHARE * style.width / columns
    row_height = side * images.shape[1] / images.shape[2] + (lines + 0.5) * _line_height(style)
    with styled(style):
        figure = new_figure(style, height=rows * row_height)
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for panel, image, caption in zip(panels, images, captions, strict=False):
            show_picture(panel, image)
            panel.set_xlabel(caption, fontsize=CAPTION * style.font_size, labelpad=2 * style.scale)
        for spare in panels[len(images) :]:
            spare.remove()
        for panel in panels[: len(images)]:
            cut_to(side, figure, panel.xaxis.label)
    return figure


def film_figure(
    film: UInt8[ndarray, "frames images height width 3"],
    steps: Sequence[int],
    captions: Sequence[str] | None = None,
    style: str | Style = "paper",
) -> Figure:
    """The way from noise to image: a row per image, a column per moment.

    Args:
        film: true colours at a few moments.
        steps: the step of each moment.
        captions: one for each image, at the left of its row.

    Raises:
        ValueError: no frame, another shape or type, or numbers of steps or captions that do not fit.
    """
    style = find_style(style)
    require_pictures("film", film, 5)
    frames, images, height, width, _ = film.shape
    captions = captions if captions is not None else [""] * images
    require(len(steps) == frames, f"steps: {len(steps)} for {frames} frames; give one each")
    require(len(captions) == images, f"captions: {len(captions)} for {images} images; give one each")
    with styled(style):
        side = PICTURE_SHARE * (style.width - 1.5 * _line_height(style)) / frames * height / width
        figure = new_figure(style, height=images * (side + 0.3 * _line_height(style)) + 1.5 * _line_height(style))
        panels = figure.subplots(images, frames, squeeze=False)
        for row, caption in enumerate(captions):
            for column, step in enumerate(steps):
                show_picture(panels[row, column], film[column, row])
                if row == 0:
                    size = CAPTION * style.font_size
                    panels[row, column].set_title(f"step {step}", fontsize=size, pad=2 * style.scale)
            label = panels[row, 0].set_ylabel(caption, fontsize=CAPTION * style.font_size)
            cut_to(side, figure, label)
    return figure


def require_pictures(name: str, pictures: ndarray, dimensions: int) -> None:
    """Raise ValueError unless these are 8-bit colour pictures, at least one."""
    fits = pictures.ndim == dimensions and pictures.shape[-1] == 3 and pictures.dtype == "uint8"
    require(
        fits and pictures.size > 0,
        f"{name}: shape {pictures.shape} and type {pictures.dtype}; must be uint8 with {dimensions} dimensions, "
        "the last of 3 colours, and not empty",
    )


def show_picture(panel: Axes, picture: UInt8[ndarray, "height width 3"]) -> None:
    """A picture without axes. Its pixels stay visible where there are few of them."""
    panel.imshow(picture, interpolation="nearest" if picture.shape[1] < 100 else "antialiased")
    panel.set_xticks([])
    panel.set_yticks([])
    panel.spines[:].set_visible(False)


def _line_height(style: Style) -> float:
    return 1.25 * CAPTION * style.font_size / 72

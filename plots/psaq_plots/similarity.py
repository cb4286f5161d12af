"""The overview figure: an image, and how similar its patches are to each other in each layer."""

from collections.abc import Sequence
from math import ceil

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.patches import Rectangle
from numpy import ndarray

from psaq_plots.canvas import new_figure
from psaq_plots.checks import require
from psaq_plots.panels import shrink_to
from psaq_plots.samples import require_pictures, show_picture
from psaq_plots.style import Style, find_style, styled

PICTURE_CELLS = 2  # the picture is as high as a heat map and a map together


def similarity_figure(
    image: UInt8[ndarray, "height width 3"],
    similarities: Sequence[Float[ndarray, "patches patches"]],
    maps: Sequence[Float[ndarray, "rows columns"]],
    patch: tuple[float, float, float, float],
    layers: Sequence[str],
    style: str | Style = "paper",
) -> Figure:
    """An image with one patch marked; for each layer Γ above, and that patch's similarity over the image below.

    Args:
        image: true colours.
        similarities: per layer, Γ between patches in reading order (for Swin, those of the patch's window).
        maps: per layer, the marked patch's similarity to each patch, laid out as the image is. NaN, where the
            layer does not compare the two, stays blank.
        patch: the marked patch's left, top, width and height, as shares of the image's sides.
        layers: the layers' names.

    Raises:
        ValueError: numbers of layers that differ, Γ that is not square, or a patch beyond the image.
    """
    style = find_style(style)
    _check(image, similarities, maps, patch, layers)
    per_band = min(len(layers), 6)
    bands = ceil(len(layers) / per_band)
    titles = 1 + max(name.count(" · ") for name in layers)
    with styled(style):
        cell = style.width / (PICTURE_CELLS + per_band + 0.9)
        figure = new_figure(style, height=bands * (2 * cell + (2 + titles) * style.font_size / 72))
        ratios = [*[1.0] * (PICTURE_CELLS + per_band), 0.1]
        cells = figure.add_gridspec(2 * bands, len(ratios), width_ratios=ratios)
        _show_image(figure.add_subplot(cells[:2, :PICTURE_CELLS]), image, patch, style)
        panels = [_two_panels(figure, cells, layer, per_band) for layer in range(len(layers))]
        for (upper, lower), similarity, over_image, name in zip(panels, similarities, maps, layers, strict=True):
            _show_heat(upper, similarity, style)
            _show_heat(lower, over_image, style)
            upper.text(
                0,
                1.04,
                name.replace(" · ", "\n"),
                transform=upper.transAxes,
                fontsize=0.85 * style.font_size,
                va="bottom",
            )
        bar = figure.colorbar(lower.images[0], cax=figure.add_subplot(cells[:2, -1]))
        bar.set_ticks([-1, 0, 1], labels=["−1", "0", "1"])
        bar.outline.set_visible(False)
        shrink_to(0.92 * cell, figure, [upper.texts[0] for upper, _ in panels])
    return figure


def _check(
    image: ndarray,
    similarities: Sequence[ndarray],
    maps: Sequence[ndarray],
    patch: tuple[float, float, float, float],
    layers: Sequence[str],
) -> None:
    require_pictures("image", image, 3)
    counts = (len(similarities), len(maps), len(layers))
    require(len(set(counts)) == 1 and counts[0] > 0, f"similarities, maps, layers: {counts} of each; give one each")
    for similarity in similarities:
        square = similarity.ndim == 2 and similarity.shape[0] == similarity.shape[1]
        require(square, f"similarities: shape {similarity.shape} is not square")
    for over_image in maps:
        require(over_image.ndim == 2, f"maps: shape {over_image.shape} is not (rows, columns)")
    left, top, width, height = patch
    inside = min(left, top) >= 0 and min(width, height) > 0 and max(left + width, top + height) <= 1 + 1e-6
    require(inside, f"patch: {patch} reaches beyond the image; left, top, width, height lie within [0, 1]")


def _two_panels(figure: Figure, cells: GridSpec, layer: int, per_band: int) -> tuple[Axes, Axes]:
    band, column = divmod(layer, per_band)
    upper = figure.add_subplot(cells[2 * band, PICTURE_CELLS + column])
    lower = figure.add_subplot(cells[2 * band + 1, PICTURE_CELLS + column])
    return upper, lower


def _show_image(
    panel: Axes, image: UInt8[ndarray, "height width 3"], patch: tuple[float, float, float, float], style: Style
) -> None:
    show_picture(panel, image)
    rows, columns = image.shape[:2]
    left, top, width, height = patch[0] * columns, patch[1] * rows, patch[2] * columns, patch[3] * rows
    corner = (left - 0.5, top - 0.5)
    # White around black: seen on any picture.
    for colour, thickness in (("black", 1.8), ("white", 0.9)):
        line = thickness * style.scale
        panel.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=line))


def _show_heat(panel: Axes, values: Float[ndarray, "rows columns"], style: Style) -> None:
    colours = mpl.colormaps[style.heat].with_extremes(bad=style.background)
    panel.imshow(np.ma.masked_invalid(values), cmap=colours, vmin=-1, vmax=1, interpolation="nearest")
    panel.set_xticks([])
    panel.set_yticks([])
    panel.spines[:].set_visible(False)

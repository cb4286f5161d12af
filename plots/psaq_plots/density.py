"""Fig. 3: how densely each similarity occurs between the patches of an image, layer by layer."""

from collections.abc import Mapping, Sequence
from itertools import count

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy import ndarray

from psaq_plots.canvas import new_figure
from psaq_plots.checks import require
from psaq_plots.panels import panel_grid
from psaq_plots.style import Style, find_style, styled

LINEAR_WIDTH = 0.5  # a density up to here is drawn to scale: a uniform one over [-1, 1] is 0.5


def density_figure(
    grid: Float[ndarray, "grid"],
    densities: Mapping[str, Float[ndarray, "layers images grid"]],
    layers: Sequence[str],
    quantiles: tuple[float, float] = (0.1, 0.9),
    columns: int | None = None,
    style: str | Style = "paper",
) -> Figure:
    """One panel per layer with one curve per source of images: the mean over images and a quantile band.

    Args:
        grid: similarities at which the densities are known.
        densities: for each source ("noise", "real", "generated" or any other name), its densities.
        layers: a name for each layer, in order.
        quantiles: the band's lower and upper quantile over the images.
        columns: panels per row; chosen from the number of layers where None.
        style: "paper", "dark", "talk" or a `Style`.

    All panels share both axes. The density axis is linear near zero and logarithmic above (an inverse hyperbolic
    sine), because the spike of noise is some twenty times as high as the hills of an image: a linear axis would
    flatten the hills, and this one keeps zero at zero and every mode a mode.

    After Fig. 3 of Li et al., "Patch Similarity Aware Data-Free Quantization for Vision Transformers", ECCV 2022.

    Raises:
        ValueError: shapes that do not agree, no source, or numbers that are not finite.
    """
    style = find_style(style)
    _check(grid, densities, layers, quantiles)
    spare = count()
    colours = {source: style.colour(source, 0 if source in style.colours else next(spare)) for source in densities}
    with styled(style):
        figure = new_figure(style, height=1.0)
        panels = panel_grid(figure, layers, style, columns)
        for layer, panel in enumerate(panels):
            for source, density in densities.items():
                _draw_curve(panel, grid, density[layer], quantiles, colours[source], style.line(source))
        _scale_axes(panels, max(_highest(density, quantiles) for density in densities.values()))
        figure.supxlabel("patch similarity", fontsize=style.font_size)
        figure.supylabel("density", fontsize=style.font_size)
        _draw_legend(figure, colours, style)
    return figure


def _check(
    grid: ndarray, densities: Mapping[str, ndarray], layers: Sequence[str], quantiles: tuple[float, float]
) -> None:
    require(len(densities) > 0, "densities: there is no source to draw; give at least one")
    require(len(layers) > 0, "layers: there is no layer to draw; give at least one")
    low, high = quantiles
    require(0 <= low <= high <= 1, f"quantiles: {quantiles} is not an ascending pair within [0, 1]")
    require(grid.ndim == 1 and bool((np.diff(grid) > 0).all()), "grid: must be one ascending row of similarities")
    for source, density in densities.items():
        wanted = (len(layers), "images", len(grid))
        fits = density.ndim == 3 and density.shape[::2] == wanted[::2] and density.shape[1] > 0
        require(fits, f"densities[{source!r}]: has shape {density.shape} instead of {wanted}")
        require(bool(np.isfinite(density).all()), f"densities[{source!r}]: holds a number that is not finite")


def _draw_curve(
    panel: Axes,
    grid: Float[ndarray, "grid"],
    density: Float[ndarray, "images grid"],
    quantiles: tuple[float, float],
    colour: str,
    line: Mapping[str, object],
) -> None:
    low, high = np.quantile(density, quantiles, axis=0)
    panel.fill_between(grid, low, high, color=colour, alpha=0.22, linewidth=0, zorder=2)
    panel.plot(grid, density.mean(0), color=colour, zorder=3, **line)  # type: ignore[arg-type]


def _highest(density: Float[ndarray, "layers images grid"], quantiles: tuple[float, float]) -> float:
    return float(max(density.mean(1).max(), np.quantile(density, quantiles[1], axis=1).max()))


def _scale_axes(panels: Sequence[Axes], highest: float) -> None:
    first = panels[0]
    first.set_yscale("asinh", linear_width=LINEAR_WIDTH)
    first.set_ylim(0, max(highest, 1e-6) * 1.08)
    first.set_xlim(-1, 1.03)
    for panel in panels:
        panel.set_xticks([-1, -0.5, 0, 0.5, 1], ["−1", "", "0", "", "1"])
        panel.set_yticks(ticks := _round_ticks(highest), [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
        panel.grid(True)


def _round_ticks(highest: float) -> list[float]:
    """Zero and up to three round numbers below ``highest``, evenly spread on the axis."""
    top = np.arcsinh(highest / LINEAR_WIDTH)
    wanted = (LINEAR_WIDTH * np.sinh(top * np.array([1 / 3, 2 / 3, 1.0]))).tolist()
    return [0.0, *dict.fromkeys(rounded for value in wanted if (rounded := _one_digit_down(value)) > 0)]


def _one_digit_down(value: float) -> float:
    """``value`` rounded down to 1, 2 or 5 times a power of ten."""
    if value <= 0:
        return 0.0
    power = 10.0 ** np.floor(np.log10(value))
    return float(max(step for step in (1, 2, 5) if step <= value / power * (1 + 1e-9)) * power)


def _draw_legend(figure: Figure, colours: Mapping[str, str], style: Style) -> None:
    handles = [
        Line2D([], [], color=colour, label=source, **style.line(source))  # type: ignore[arg-type]
        for source, colour in colours.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), handlelength=2.2, borderpad=0.3)

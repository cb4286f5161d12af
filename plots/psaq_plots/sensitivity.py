"""What quantising each layer alone costs the logits: signal-to-noise ratio and agreement."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy import ndarray

from psaq_plots.canvas import new_figure
from psaq_plots.checks import require
from psaq_plots.style import Style, find_style, styled


def sensitivity_figure(
    sqnr: Float[ndarray, "layers"],
    agreement: Float[ndarray, "layers"],
    layers: Sequence[str],
    style: str | Style = "paper",
) -> Figure:
    """One row per layer, in the order of the forward pass, with a bar each: the shorter, the more it costs.

    Args:
        sqnr: of the logits where only this layer is quantised, in dB; a row without a finite number has no bar.
        agreement: images whose predicted class stays, in percent.
        layers: the layers' names.

    Raises:
        ValueError: no layer, or another number of figures than of layers.
    """
    style = find_style(style)
    require(len(layers) > 0, "layers: there is none; give at least one")
    for name, values in (("sqnr", sqnr), ("agreement", agreement)):
        require(np.shape(values) == (len(layers),), f"{name}: {np.shape(values)} for {len(layers)} layers")
    with styled(style):
        line = 1.35 * style.font_size / 72 * 0.8
        figure = new_figure(style, height=len(layers) * line + 4 * style.font_size / 72)
        left, right = figure.subplots(1, 2, sharey=True)
        _bars(left, np.asarray(sqnr, dtype=float), "logit SQNR (dB)", style.colour("generated", 0))
        _bars(right, np.asarray(agreement, dtype=float), "agreement (%)", style.colour("real", 1))
        right.set_xlim(0, 100)
        right.tick_params(axis="y", left=False)
        left.set_yticks(range(len(layers)), list(layers), fontsize=0.75 * style.font_size)
        left.set_ylim(len(layers) - 0.4, -0.6)
    return figure


def _bars(panel: Axes, values: Float[ndarray, "layers"], label: str, colour: str) -> None:
    panel.barh(np.arange(len(values)), np.where(np.isfinite(values), values, 0), height=0.7, color=colour)
    panel.set_xlabel(label)
    panel.grid(True, axis="x")

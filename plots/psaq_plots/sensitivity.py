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
    agreement: Float[ndarray, "layers"] | None,
    layers: Sequence[str],
    style: str | Style = "paper",
) -> Figure:
    """One row per layer, in the order of the forward pass, with a bar each: the shorter, the more it costs.

    Args:
        sqnr: of the logits where only this layer is quantised, in dB; without noise, of infinite dB, a pale bar
            reaches beyond all others; NaN has none.
        agreement: images whose predicted class stays, in percent; None of a model without classes, which has no such
            panel.
        layers: the layers' names.

    Raises:
        ValueError: no layer, or another number of figures than of layers.
    """
    style = find_style(style)
    require(len(layers) > 0, "layers: there is none; give at least one")
    panels = {"sqnr": sqnr} if agreement is None else {"sqnr": sqnr, "agreement": agreement}
    for name, values in panels.items():
        require(np.shape(values) == (len(layers),), f"{name}: {np.shape(values)} for {len(layers)} layers")
    with styled(style):
        line = 1.35 * style.font_size / 72 * 0.8
        figure = new_figure(style, height=len(layers) * line + 4 * style.font_size / 72)
        left, *right = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        _bars(left, np.asarray(sqnr, dtype=float), "logit SQNR (dB)", style.colour("generated", 0))
        for panel in right:
            _bars(panel, np.asarray(agreement, dtype=float), "agreement (%)", style.colour("real", 1))
            panel.set_xlim(0, 100)
            panel.tick_params(axis="y", left=False)
        left.set_yticks(range(len(layers)), list(layers), fontsize=0.75 * style.font_size)
        left.set_ylim(len(layers) - 0.4, -0.6)
    return figure


def _bars(panel: Axes, values: Float[ndarray, "layers"], label: str, colour: str) -> None:
    finite, infinite = np.isfinite(values), np.isposinf(values)
    edge = 1.1 * np.max(values[finite], initial=1.0)
    bars = panel.barh(np.arange(len(values)), np.where(finite, values, 0) + edge * infinite, height=0.7, color=colour)
    for bar in np.array(bars.patches)[infinite]:
        bar.set_alpha(0.35)
    if infinite.any():
        panel.set_xlim(right=edge)
    panel.set_xlabel(label + (", pale: no noise" if infinite.any() else ""))
    panel.grid(True, axis="x")

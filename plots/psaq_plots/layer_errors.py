"""What quantisation costs each layer: signal-to-quantisation-noise ratio of its weights and its activations."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from numpy import ndarray

from psaq_plots.canvas import new_figure
from psaq_plots.checks import require
from psaq_plots.style import Style, find_style, styled

_COLOURS = {"weights": "real", "activations": "generated"}


def layer_errors_figure(
    sqnr: Mapping[str, Float[ndarray, "layers"]], layers: Sequence[str], style: str | Style = "paper"
) -> Figure:
    """One row per layer, in the order of the forward pass, with a dot per kind of tensor: further right is better.

    Args:
        sqnr: kind of tensor ("weights", "activations") → dB per layer; NaN where the layer has none.
        layers: the layers' names.

    Raises:
        ValueError: no layer, or a kind with another number of them.
    """
    style = find_style(style)
    require(len(layers) > 0 and len(sqnr) > 0, "sqnr: holds no layer; give at least one")
    for kind, values in sqnr.items():
        require(np.shape(values) == (len(layers),), f"sqnr[{kind!r}]: {np.shape(values)} for {len(layers)} layers")
    rows = np.arange(len(layers))
    with styled(style):
        line = 1.35 * style.font_size / 72 * 0.8
        figure = new_figure(style, height=len(layers) * line + 5 * style.font_size / 72)
        panel = figure.subplots()
        all_values = np.stack([np.asarray(values, dtype=float) for values in sqnr.values()])
        panel.hlines(rows, *_ends(all_values), color=style.rule, linewidth=0.8 * style.scale, zorder=1)
        for position, (kind, values) in enumerate(sqnr.items()):
            colour = style.colour(_COLOURS.get(kind, kind), position)
            marker = "os^D"[position % 4]
            panel.scatter(values, rows, s=9 * style.scale**2, color=colour, marker=marker, label=kind, zorder=2)
        panel.set_yticks(rows, list(layers), fontsize=0.75 * style.font_size)
        panel.set_ylim(len(layers) - 0.4, -0.6)
        panel.set_xlabel("SQNR (dB)")
        panel.grid(True, axis="x")
        figure.legend(loc="outside upper center", ncols=len(sqnr), borderpad=0.3)
    return figure


def _ends(values: Float[ndarray, "kinds layers"]) -> tuple[Float[ndarray, "layers"], Float[ndarray, "layers"]]:
    """Where each layer's connecting line starts and ends: nowhere, where it has no finite number."""
    finite = np.isfinite(values)
    lowest = np.where(finite, values, np.inf).min(0)
    highest = np.where(finite, values, -np.inf).max(0)
    some = finite.any(0)
    return np.where(some, lowest, np.nan), np.where(some, highest, np.nan)

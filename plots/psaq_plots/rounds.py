"""What became of an evolution, round by round: one panel per figure."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy import ndarray

from psaq_plots.checks import require
from psaq_plots.panels import curve_panels
from psaq_plots.style import Style, find_style, styled


def rounds_figure(figures: Mapping[str, Float[ndarray, "rounds"]], best: int, style: str | Style = "paper") -> Figure:
    """Each figure over the rounds, the best round marked.

    Args:
        figures: name → its value after every round, the start first; NaN where a round has none.
        best: the position of the round that was kept.

    Raises:
        ValueError: no figure, figures of different rounds, or a best round that is none of them.
    """
    style = find_style(style)
    require(len(figures) > 0, "figures: there is none; give at least one")
    lengths = {np.shape(values) for values in figures.values()}
    require(len(lengths) == 1 and len(next(iter(lengths))) == 1, f"figures: of shapes {lengths}; give one row each")
    (count,) = next(iter(lengths))
    require(0 <= best < count, f"best {best}: must be one of the {count} rounds, counted from 0")
    with styled(style):
        figure, panels = curve_panels([*figures], style, "round")
        for panel, values in zip(panels, figures.values(), strict=True):
            colour = style.colour("generated")
            panel.plot(range(count), values, color=colour, linewidth=1.1 * style.scale, marker="o", markersize=3)
            panel.axvline(best, color=style.muted, linewidth=0.8 * style.scale, linestyle=":")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure

"""What became of an evolution, round by round: one panel per figure."""

from collections.abc import Mapping
from math import ceil

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy import ndarray

from psaq_plots.canvas import new_figure
from psaq_plots.checks import require
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
    columns = min(len(figures), 2)
    rows = ceil(len(figures) / columns)
    with styled(style):
        figure = new_figure(style, height=rows * 0.62 * style.width / columns)
        panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True).flat)
        for position, (panel, (name, values)) in enumerate(zip(panels, figures.items(), strict=False)):
            colour = style.colour("generated")
            panel.plot(range(count), values, color=colour, linewidth=1.1 * style.scale, marker="o", markersize=3)
            panel.axvline(best, color=style.muted, linewidth=0.8 * style.scale, linestyle=":")
            panel.set_title(name, loc="left", fontsize=0.9 * style.font_size, pad=2 * style.scale)
            panel.grid(True)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            if position + columns >= len(figures):
                panel.set_xlabel("round")
                panel.tick_params(labelbottom=True)
        for spare in panels[len(figures) :]:
            spare.remove()
    return figure

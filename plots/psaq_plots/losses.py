"""Loss curves of a synthesis: one panel per loss, over the steps."""

from collections.abc import Mapping

from jaxtyping import Float
from matplotlib.figure import Figure
from numpy import ndarray

from psaq_plots.checks import require
from psaq_plots.panels import curve_panels
from psaq_plots.style import Style, find_style, styled


def losses_figure(history: Mapping[str, Float[ndarray, "batches steps"]], style: str | Style = "paper") -> Figure:
    """Each loss over the steps of the optimisation: thin lines for the batches, a thick one for their mean.

    Raises:
        ValueError: no loss, or one that is not (batches, steps) with at least one of each.
    """
    style = find_style(style)
    require(len(history) > 0, "history: holds no loss; give at least one")
    for name, values in history.items():
        require(
            values.ndim == 2 and values.size > 0, f"history[{name!r}]: shape {values.shape} is not (batches, steps)"
        )
    with styled(style):
        figure, panels = curve_panels([*history], style, "step")
        for panel, values in zip(panels, history.values(), strict=True):
            steps = range(1, values.shape[1] + 1)
            if len(values) > 1:
                panel.plot(steps, values.T, color=style.muted, linewidth=0.4 * style.scale, alpha=0.6)
            panel.plot(steps, values.mean(0), color=style.colour("generated"), linewidth=1.1 * style.scale)
    return figure

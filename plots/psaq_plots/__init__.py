"""Figures of patch-similarity-aware quantisation: arrays in, matplotlib figures out.

Every function returns a `matplotlib.figure.Figure`; none shows or saves it, and none needs a screen.
"""

from psaq_plots.canvas import FORMATS, check_format, save_figure
from psaq_plots.density import density_figure
from psaq_plots.style import STYLES, Style

__all__ = ["FORMATS", "STYLES", "Style", "check_format", "density_figure", "save_figure"]

"""Figures of patch-similarity-aware quantisation: arrays in, matplotlib figures out.

Every function returns a `matplotlib.figure.Figure`; none shows or saves it, and none needs a screen.
"""

from psaq_plots.accuracy import accuracy_figure
from psaq_plots.canvas import FORMATS, check_format, figure_bytes, save_figure
from psaq_plots.density import density_figure
from psaq_plots.layer_errors import layer_errors_figure
from psaq_plots.losses import losses_figure
from psaq_plots.predictions import DrawnBoxes, boxes_figure, pixels_figure
from psaq_plots.rounds import rounds_figure
from psaq_plots.samples import film_figure, samples_figure
from psaq_plots.sensitivity import sensitivity_figure
from psaq_plots.similarity import similarity_figure
from psaq_plots.style import STYLES, Style, find_style

__all__ = [
    "FORMATS",
    "STYLES",
    "DrawnBoxes",
    "Style",
    "accuracy_figure",
    "boxes_figure",
    "check_format",
    "density_figure",
    "figure_bytes",
    "film_figure",
    "find_style",
    "layer_errors_figure",
    "losses_figure",
    "pixels_figure",
    "rounds_figure",
    "samples_figure",
    "save_figure",
    "sensitivity_figure",
    "similarity_figure",
]

"""``python -m psaq.plot_density`` is ``psaq plot-density``."""

from psaq.commands.plot_density import PlotDensity
from psaq.program import run_command

__all__ = ["PlotDensity"]

if __name__ == "__main__":
    run_command(PlotDensity, prog="python -m psaq.plot_density")

"""``psaq plot-predictions``: the boxes or pixels' classes that a model and its quantised copy find in pictures."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from psaq.choices import TaskName
from psaq.commands.options import ModelOptions
from psaq.commands.outputs import FigureOptions


@dataclass(frozen=True)
class PlotPredictions:
    """Draw what a model and its quantised copy find in the same pictures, boxes or classes of pixels, differences
    marked."""

    quantized: Path
    """A run of ``psaq quantize``, or its file."""
    images: Annotated[tuple[Path, ...], tyro.conf.arg(name="images")]
    """Picture files, and folders of them."""
    model: ModelOptions = field(default_factory=ModelOptions)
    task: TaskName | None = None
    """What the model is for; by default found from the model and its output."""
    pictures: int = 4
    """How many, at most: the first in sorted path order."""
    names: tuple[str, ...] = ()
    """What the classes are called, in order from 0; by default what the model says, or their numbers."""
    figure: FigureOptions = field(default_factory=lambda: FigureOptions(Path("predictions.png")))

    def run(self) -> None:
        from psaq.commands.work.plot_predictions import run

        run(self)

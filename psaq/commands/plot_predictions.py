"""``psaq plot-predictions``: the boxes or pixels' classes that a model and its quantised copy find in pictures."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from psaq.commands.options import ModelOptions
from psaq.commands.outputs import FigureOptions
from psaq.commands.quantize import MODEL_FILE
from psaq.errors import PsaqError
from psaq.images.pictures import picture_files
from psaq.images.preprocessing import read_image
from psaq.quantization.checkpoint import load
from psaq.tasks.pictures import draw_predictions
from psaq.tasks.task import TaskName


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
        if self.pictures < 1:
            raise PsaqError(f"--pictures {self.pictures}: must be at least 1")
        self.figure.check()
        files = picture_files(self.images)[: self.pictures]
        model = self.model.load()
        file = self.quantized / MODEL_FILE if self.quantized.is_dir() else self.quantized
        quantized = load(file, model).to(next(model.parameters()).device)
        pictures = [read_image(file, str(file)) for file in files]
        names = dict(enumerate(self.names)) or None
        self.figure.write(draw_predictions(model, quantized, pictures, names, self.task, self.figure.look()))

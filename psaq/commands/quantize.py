"""``psaq quantize``: a model and a few images, or none at all, to a file of integers."""

from dataclasses import dataclass

from psaq.commands.calibration import Calibrating

MODEL_FILE = "model.safetensors"


@dataclass(frozen=True)
class Quantize(Calibrating):
    """Quantise a trained vision transformer.

    Without a word on calibration images they are synthesised from the model first; an interrupted synthesis goes on
    where it stopped.
    """

    budget: str | None = None
    """The file's largest size, "3.5MB" or "60%" of what it takes with every weight at 8 bits: each layer's bits per
    weight, 4 or 8, are picked by what the layer costs alone, in place of the precision's."""

    def run(self) -> None:
        from psaq.commands.work.quantize import run

        run(self)

"""``psaq sensitivity``: what quantising each layer alone costs, as a table, a CSV file and a picture."""

from dataclasses import dataclass

from psaq.commands.calibration import Calibrating


@dataclass(frozen=True)
class MeasureSensitivity(Calibrating):
    """Quantise one layer after the other, each alone, and measure what the logits lose.

    Without a word on calibration images they are synthesised from the model first.
    """

    precision: str = "W4A8"
    """Bits of the layer's weight and activations, 2 to 8 each."""

    def run(self) -> None:
        from psaq.commands.work.sensitivity import run

        run(self)

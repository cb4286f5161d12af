"""``psaq sensitivity``: what quantising each layer alone costs, as a table, a CSV file and a picture."""

from dataclasses import dataclass

from psaq.commands.calibration import Calibrating
from psaq.quantization.sensitivity import sensitivity
from psaq.runs import RunFolder

TABLE, PICTURE = "sensitivity.csv", "sensitivity.png"


@dataclass(frozen=True)
class MeasureSensitivity(Calibrating):
    """Quantise one layer after the other, each alone, and measure what the logits lose.

    Without a word on calibration images they are synthesised from the model first.
    """

    precision: str = "W4A8"
    """Bits of the layer's weight and activations, 2 to 8 each."""

    def run(self) -> None:
        recipe, folder = self.chosen_recipe(), self.folder("sensitivity")
        model = self.model.load()
        self.check(model, recipe)
        run = RunFolder(folder, "sensitivity", self.config(), self.seed)
        with run.timed("images"):
            images = self.calibration_images(model, folder)
        with run.timed("sensitivity"):
            measured = sensitivity(model, images, recipe, progress=True)
        measured.write_csv(folder / TABLE)
        measured.plot(folder / PICTURE)
        worst = [layer.layer for layer in measured.worst_first()[:5]]
        run.finish({"most_sensitive": worst})
        print(f"{measured}\n\nmost sensitive: {', '.join(worst)}\n{folder / TABLE}\n{folder / PICTURE}")

"""What ``psaq sensitivity`` does."""

from psaq.commands.sensitivity import MeasureSensitivity
from psaq.models.place import device_of
from psaq.quantization.sensitivity import sensitivity
from psaq.runs import RunFolder

TABLE, PICTURE = "sensitivity.csv", "sensitivity.png"


def run(options: MeasureSensitivity) -> None:
    recipe, folder = options.chosen_recipe(), options.folder("sensitivity")
    model = options.model.load()
    options.check(model, recipe)
    run = RunFolder(folder, "sensitivity", options.config(), options.seed, device=device_of(model))
    with run.timed("images"):
        images = options.calibration_images(model, folder)
    with run.timed("sensitivity"):
        measured = sensitivity(model, images, recipe, progress=True)
    measured.write_csv(folder / TABLE)
    measured.plot(folder / PICTURE)
    worst = [layer.layer for layer in measured.worst_first()[:5]]
    run.finish({"most_sensitive": worst})
    print(f"{measured}\n\nmost sensitive: {', '.join(worst)}\n{folder / TABLE}\n{folder / PICTURE}")

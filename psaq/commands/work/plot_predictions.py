"""What ``psaq plot-predictions`` does."""

from psaq.commands.plot_predictions import PlotPredictions
from psaq.commands.quantize import MODEL_FILE
from psaq.errors import PsaqError
from psaq.images.pictures import picture_files
from psaq.images.preprocessing import read_image
from psaq.models.place import device_of
from psaq.quantization.checkpoint import load
from psaq.tasks.pictures import draw_predictions


def run(options: PlotPredictions) -> None:
    if options.pictures < 1:
        raise PsaqError(f"--pictures {options.pictures}: must be at least 1")
    options.figure.check()
    files = picture_files(options.images)[: options.pictures]
    model = options.model.load()
    file = options.quantized / MODEL_FILE if options.quantized.is_dir() else options.quantized
    quantized = load(file, model).to(device_of(model))
    pictures = [read_image(file, str(file)) for file in files]
    names = dict(enumerate(options.names)) or None
    options.figure.write(draw_predictions(model, quantized, pictures, names, options.task, options.figure.look()))

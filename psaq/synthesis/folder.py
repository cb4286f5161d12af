"""Synthesis into a folder: what is finished is loaded, what was interrupted goes on."""

import csv
import io
from pathlib import Path

from torch import nn

from psaq.errors import PsaqError
from psaq.files import write_text
from psaq.images.synthetic import FILE_NAME, SyntheticImages, load_images
from psaq.runs import as_json
from psaq.synthesis.config import SynthesisConfig
from psaq.synthesis.loop import synthesize

CHECKPOINT = "checkpoint.safetensors"
HISTORY = "history.csv"


def synthesize_into(
    folder: Path, model: nn.Module, config: SynthesisConfig, *, progress: bool = True
) -> SyntheticImages:
    """Synthesise images and save them in ``folder``: the tensors, a PNG each, and the losses as CSV.

    Called again after an interruption, it goes on from the last checkpoint; called again after it has finished, it
    loads the images.

    Raises:
        PsaqError: the folder holds images of another configuration, and whatever `synthesize` raises.
    """
    if (folder / FILE_NAME).exists():
        return _finished(folder, config)
    images = synthesize(model, config, checkpoint=folder / CHECKPOINT, progress=progress)
    _write_history(folder / HISTORY, images)
    images.save(folder)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return images


def _finished(folder: Path, config: SynthesisConfig) -> SyntheticImages:
    images = load_images(folder)
    if images.provenance.get("config") != as_json(config):
        raise PsaqError(f"{folder}: holds images of another configuration; name another folder")
    return images


def _write_history(path: Path, images: SyntheticImages) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["batch", "step", *images.history])
    batches, steps = next(iter(images.history.values())).shape
    for batch in range(batches):
        for step in range(steps):
            writer.writerow([batch, step, *(f"{values[batch, step]:.6g}" for values in images.history.values())])
    write_text(path, text.getvalue())

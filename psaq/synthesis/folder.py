"""Synthesis into folders: what is finished is loaded, what was interrupted goes on."""

import csv
import io
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from psaq.distributed import first_says, is_first, together
from psaq.errors import PsaqError
from psaq.files import write_text
from psaq.images.synthetic import FILE_NAME, NO_CLASS, SyntheticImages, load_images
from psaq.models.fingerprint import fingerprint
from psaq.models.wrappers import unwrapped
from psaq.settings import as_json
from psaq.synthesis.config import DEFAULT_STARTS, PIXEL_CLASS_WEIGHT, SynthesisConfig, with_later_options
from psaq.synthesis.loop import synthesize_all

CHECKPOINT = "checkpoint"
HISTORY = "history.csv"


def synthesize_into(
    folder: Path, model: nn.Module, config: SynthesisConfig, *, progress: bool = False
) -> SyntheticImages:
    """Synthesise images and save them in ``folder``: the tensors, a PNG each, and the losses as CSV.

    Called again after an interruption, it goes on from the last checkpoint; called again after it has finished, it
    loads the images.

    Raises:
        PsaqError: the folder holds images of another configuration or other weights, and whatever `synthesize` raises.
    """
    return synthesize_all_into({folder: config}, model, progress=progress)[0]


def synthesize_all_into(
    configs: Mapping[Path, SynthesisConfig], model: nn.Module, *, progress: bool = False
) -> list[SyntheticImages]:
    """Several syntheses, each into its folder as `synthesize_into` does it. Under torchrun every rank must see them."""
    missing = [folder for folder in configs if not first_says((folder / FILE_NAME).exists)]
    made = synthesize_all(
        model,
        [configs[folder] for folder in missing],
        [folder / CHECKPOINT for folder in missing],
        progress=progress,
    )
    with together():
        for folder, images in zip(missing, made, strict=True):
            if is_first():
                _save(images, folder)
    new = dict(zip(missing, made, strict=True))
    with together():
        return [new.get(folder) or load_finished(folder, config, model) for folder, config in configs.items()]


def load_finished(folder: Path, config: SynthesisConfig, model: nn.Module) -> SyntheticImages:
    """The images of a finished synthesis from ``model``.

    Raises:
        PsaqError: there are none, or they are of another configuration or of other weights.
    """
    images = load_images(folder)
    wanted = as_json(config)
    found = with_later_options(images.provenance.get("config") or {})
    if config.class_weight is None:
        defaults = (PIXEL_CLASS_WEIGHT, 0.0) if bool((images.labels == NO_CLASS).all()) else (1.0,)
        wanted["class_weight"] = found["class_weight"] if found["class_weight"] in defaults else defaults[0]
    if config.start is None and found["start"] in ("natural", DEFAULT_STARTS[bool(found["class_weight"])]):
        wanted["start"] = found["start"]
    differing = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
    if differing:
        raise PsaqError(
            f"{folder}: holds images of another configuration (another {', '.join(differing[:3])}); name another "
            "folder, or ask for what these were made with"
        )
    weights = fingerprint(unwrapped(model))
    if images.provenance.get("weights", weights) != weights:  # version 0.1 did not say of which they are
        raise PsaqError(
            f"{folder}: holds images that were synthesised from {images.provenance.get('model')} with other weights; "
            "name another folder, or give the model and the weights of before"
        )
    return images


def _save(images: SyntheticImages, folder: Path) -> None:
    _write_history(folder / HISTORY, images)
    images.save(folder)
    shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)


def _write_history(path: Path, images: SyntheticImages) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["batch", "step", *images.history])
    batches, steps = next(iter(images.history.values())).shape
    for batch in range(batches):
        for step in range(steps):
            writer.writerow([batch, step, *(f"{values[batch, step]:.6g}" for values in images.history.values())])
    write_text(path, text.getvalue())

"""The labelled and the real images of a table: what is evaluated on, and what "Standard" is calibrated on."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from psaq.errors import PsaqError
from psaq.images.held_out import HELD_OUT_SEED, calibration_scenes
from psaq.images.hugging_face import hugging_face_images, split_files
from psaq.images.imagenet import imagenet
from psaq.images.pictures import load_pictures
from psaq.images.scenes import SceneDataset
from psaq.models.micro import MICRO_MODELS

SCENES = 1000
"""Held-out rendered scenes that a bundled model is measured on at most."""


@dataclass(frozen=True)
class ImageSource:
    """Where a table's images come from. The bundled models always get rendered scenes."""

    imagenet: Path | None
    """A folder with val/ and train/, of class folders itself, or a Hugging Face data set."""
    images: int
    """Evaluate on at most so many, evenly spread."""
    crop_pct: float | None
    """Of the evaluation; None takes the model's own."""
    calibration: Path | None
    """A folder of real pictures to calibrate on, or a Hugging Face data set; None takes the train part of imagenet."""
    calibration_crop_pct: float | None
    """Of the real calibration images; None takes the model's own."""

    def check(self, name: str) -> None:
        """Raise PsaqError where ``name`` needs a folder of images and there is none."""
        if name not in MICRO_MODELS:
            _named(self.imagenet, name)

    def evaluation(self, name: str, model: nn.Module) -> Dataset[tuple[Tensor, int]]:
        """What ``model`` is evaluated on. Raises PsaqError where there is nothing, or nothing for its classes."""
        if name in MICRO_MODELS:
            return SceneDataset(min(self.images, SCENES), HELD_OUT_SEED, model)
        dataset = imagenet(_part(_named(self.imagenet, name), ("val", "validation")), model, self.crop_pct)
        found = len(dataset)  # type: ignore[arg-type]
        return dataset if found <= self.images else Subset(dataset, spread(found, self.images))

    def real(self, name: str, model: nn.Module, count: int) -> Float[Tensor, "images 3 height width"]:
        """Real images to calibrate ``model`` on, evenly spread over all that are there.

        Raises:
            PsaqError: there are none, or fewer than ``count``.
        """
        if name in MICRO_MODELS:
            return calibration_scenes(model, count)
        folder = self.training_folder(name)
        if not split_files(folder, "train"):
            return load_pictures(folder, model, count, self.calibration_crop_pct)
        dataset = hugging_face_images(folder, model, "train", self.calibration_crop_pct)
        if len(dataset) < count:
            raise PsaqError(f"{folder}: {len(dataset)} training images, {count} are needed to calibrate on")
        return torch.stack([dataset[index][0] for index in spread(len(dataset), count)])

    def training_folder(self, name: str) -> Path:
        """Where real calibration images come from. Raises PsaqError where no folder holds any."""
        if self.calibration is not None:
            return self.calibration
        root = _named(self.imagenet, name)
        folder = _part(root, ("train",))
        if folder == root and not split_files(root, "train"):
            raise PsaqError(
                f"{root}: has no training images for Standard; name real images with --calibration DIR, "
                "or leave it out with --methods Gaussian PSAQ"
            )
        return folder


def spread(found: int, count: int) -> list[int]:
    """``count`` indices evenly spread over ``found``."""
    return [index * found // count for index in range(count)]


def _named(root: Path | None, name: str) -> Path:
    if root is None:
        raise PsaqError(f"model {name!r}: name a folder of ImageNet's images with --imagenet DIR")
    if not root.is_dir():
        raise PsaqError(f"{root}: there is no such folder of images")
    return root


def _part(root: Path, names: tuple[str, ...]) -> Path:
    return next((root / name for name in names if (root / name).is_dir()), root)

"""Picture files, wherever they lie, as a model wants them: no classes asked for."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.images.folder import IMAGE_SUFFIXES, counted, find_pictures
from psaq.images.preprocessing import preprocessing_for, read_image
from psaq.images.synthetic import SyntheticImages
from psaq.images.whole import WholePicture
from psaq.models.image_format import renormalised
from psaq.models.zoo import data_config
from psaq.progress import note


def load_pictures(
    paths: Path | str | Sequence[Path | str],
    model: nn.Module,
    count: int | None = None,
    crop_pct: float | None = None,
    whole: bool = False,
) -> Float[Tensor, "images channels height width"]:
    """Pictures resized, cropped and normalised for ``model``.

    Args:
        paths: files, and folders that are searched to the bottom, each in sorted order.
        count: take so many, evenly spread over all that were found; all of them where None.
        crop_pct: part of the resized picture's side that the centre crop keeps; None takes the model's own.
        whole: squeeze the whole picture into the model's size, as segmenters and detectors see it, and crop nothing.

    Raises:
        PsaqError: a path that is not there, a folder without pictures, a damaged picture, or fewer than ``count``.
    """
    files = picture_files([paths] if isinstance(paths, Path | str) else paths)
    if count is not None:
        files = _spread(files, count)
    preprocess = WholePicture(model, one_size=True) if whole else preprocessing_for(model, crop_pct)
    return torch.stack([preprocess(read_image(file, str(file))) for file in files])


def picture_files(paths: Iterable[Path | str]) -> list[Path]:
    """The files among ``paths`` and those in its folders. Raises PsaqError where one yields none."""
    return [file for path in paths for file in _files_of(Path(path))]


def _files_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise PsaqError(f"{path}: there is no such picture or folder")
    found = find_pictures(path)
    if not found.files:
        raise PsaqError(f"{path}: holds no picture ({', '.join(sorted(IMAGE_SUFFIXES))}); name another folder")
    if found.passed_over:
        note(f"{path}: {len(found.files)} pictures, {counted(found.passed_over)}")
    return found.files


def _spread(files: list[Path], count: int) -> list[Path]:
    if not 1 <= count <= len(files):
        raise PsaqError(f"{count} pictures: {len(files)} were found; ask for 1 to {len(files)}, or add more")
    return [files[index * len(files) // count] for index in range(count)]


def normalised_for(model: nn.Module, images: SyntheticImages) -> Float[Tensor, "images channels height width"]:
    """Synthesised images in ``model``'s normalised space, where they were made for another model's.

    Raises:
        PsaqError: they have other channels than the model takes.
    """
    config = data_config(model)
    if len(images.mean) != config.channels:
        raise PsaqError(
            f"images of {len(images.mean)} channels: the model takes {config.channels}; synthesise them from this model"
        )
    return renormalised(images.images, replace(config, mean=images.mean, std=images.std), config)

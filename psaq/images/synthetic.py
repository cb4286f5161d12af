"""Synthesised images and all that is known of how they came about."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from psaq.errors import PsaqError
from psaq.files import load_tensors, make_folder, save_tensors, write_whole

KIND = "synthetic images"
FILE_NAME = "images.safetensors"
_LEVEL = 1 / 255
NO_CLASS = -1
"""The label of an image that was synthesised for no class."""


@dataclass(frozen=True)
class SyntheticImages:
    """Images in a model's normalised space, with their labels and history.

    Attributes:
        images: (images, channels, height, width), normalised by ``mean`` and ``std``.
        labels: the class each image was synthesised for, -1 for none.
        mean, std: per channel, of pixel values in [0, 1].
        history: loss name → its value at every step, averaged over images: (batches, steps).
        film: the first images in true colours at a few steps: (frames, images, 3, height, width).
        provenance: model, configuration, seed and versions; JSON types only.
    """

    images: Float[Tensor, "images channels height width"]
    labels: Int[Tensor, "images"]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    history: dict[str, Float[Tensor, "batches steps"]] = field(default_factory=dict)
    film: UInt8[Tensor, "frames images 3 height width"] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def true_colours(self) -> UInt8[Tensor, "images 3 height width"]:
        """The images as a screen shows them: the model's mean and std undone."""
        return true_colours(self.images, self.mean, self.std)

    def save(self, folder: Path | str) -> Path:
        """Write ``images.safetensors`` and one PNG per image into ``folder``; PNGs of images that were saved
        there before are removed. Returns the safetensors file.

        Raises:
            PsaqError: the folder cannot be written to; nothing is left half-written.
        """
        folder = make_folder(Path(folder))
        pictures = make_folder(folder / "images")
        path, earlier = folder / FILE_NAME, _pictures_in(folder)
        files = [pictures / _picture_name(index, label) for index, label in enumerate(self.labels.tolist())]
        for file, picture in zip(files, self.true_colours(), strict=True):
            save_picture(file, picture)
        save_tensors(path, dict(self._tensors()), KIND, self._header())
        for file in earlier - {*files}:
            file.unlink(missing_ok=True)
        return path

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield "images", self.images
        yield "labels", self.labels
        for name, values in self.history.items():
            yield f"history.{name}", values
        if self.film is not None:
            yield "film", self.film

    def _header(self) -> dict[str, Any]:
        return {"mean": self.mean, "std": self.std, "provenance": self.provenance}


def load_images(path: Path | str) -> SyntheticImages:
    """Read what `SyntheticImages.save` wrote, from the folder or the safetensors file itself.

    Raises:
        PsaqError: there is no such file, or it is damaged, newer, or holds something else, or no such images can be.
    """
    path = Path(path)
    file = path / FILE_NAME if path.is_dir() else path
    tensors, header = load_tensors(file, KIND)
    history = {name.removeprefix("history."): t for name, t in tensors.items() if name.startswith("history.")}
    unknown = [*(tensors.keys() - {"images", "labels", "film", *(f"history.{name}" for name in history)})]
    unknown += header.keys() - {"mean", "std", "provenance"}
    if unknown or not {"images", "labels"} <= tensors.keys() or not {"mean", "std"} <= header.keys():
        raise PsaqError(f"{file}: lacks images, labels, mean or std, or holds something else; synthesise anew")
    images = SyntheticImages(
        images=tensors["images"],
        labels=tensors["labels"],
        mean=tuple(header["mean"]),
        std=tuple(header["std"]),
        history=history,
        film=tensors.get("film"),
        provenance=header.get("provenance", {}),
    )
    wrong = next((what for what, is_right in _invariants(images) if not is_right), None)
    if wrong is not None:
        raise PsaqError(f"{file}: is damaged: {wrong}; synthesise anew")
    return images


def _picture_name(index: int, label: int) -> str:
    return f"{index:04d}{'' if label == NO_CLASS else f'_class{label}'}.png"


def _pictures_in(folder: Path) -> set[Path]:
    """The PNGs of images that were saved in ``folder``; none where the pictures there are anyone else's."""
    if not (folder / FILE_NAME).exists():
        return set()
    return {file for file in (folder / "images").glob("*.png") if re.fullmatch(r"\d{4,}(_class\d+)?\.png", file.name)}


def _invariants(found: SyntheticImages) -> Iterator[tuple[str, bool]]:
    """What holds of all images that psaq makes, each with whether it does; a later one counts on those before it."""
    yield "mean and std are no positive numbers", _are_statistics(found.mean, found.std)
    images, labels, film = found.images, found.labels, found.film
    yield "the images are no floats (images, channels, height, width)", images.ndim == 4 and images.is_floating_point()
    yield "mean and std are of other channels than the images", images.shape[1] == len(found.mean)
    yield "there are other labels than images", labels.shape == images.shape[:1] and labels.dtype == torch.int64
    yield f"a label is below {NO_CLASS}", bool((labels >= NO_CLASS).all())
    yield "the images hold NaN or infinity", bool(images.isfinite().all())
    yield "a loss is NaN or infinite", all(bool(values.isfinite().all()) for values in found.history.values())
    yield "the losses are of different steps", len({tuple(values.shape) for values in found.history.values()}) <= 1
    if film is not None:
        yield "the film is of other pictures", film.dtype == torch.uint8 and film.shape[3:] == images.shape[2:]
    yield "the provenance has no names", isinstance(found.provenance, dict)
    yield "the images reach beyond black and white", not _keeps_to_pixels(found) or _within_pixels(found)


def _are_statistics(mean: tuple[Any, ...], std: tuple[Any, ...]) -> bool:
    numbers = all(type(value) in (int, float) and math.isfinite(value) for value in (*mean, *std))
    return numbers and len(mean) == len(std) > 0 and min(std) > 0


def _keeps_to_pixels(found: SyntheticImages) -> bool:
    """Whether the images were clipped to black and white of their own mean and std."""
    config = found.provenance.get("config")
    return isinstance(config, dict) and config.get("pixel_range") == "sound"


def _within_pixels(found: SyntheticImages) -> bool:
    mean, std = (torch.tensor(values)[:, None, None] for values in (found.mean, found.std))
    pixels = found.images.float() * std + mean
    return not len(pixels) or bool(pixels.min() >= -_LEVEL and pixels.max() <= 1 + _LEVEL)


def true_colours(
    images: Float[Tensor, "*batch channels height width"], mean: tuple[float, ...], std: tuple[float, ...]
) -> UInt8[Tensor, "*batch 3 height width"]:
    """Undo a normalisation: [0, 1] times 255, rounded, out-of-range values clamped. Of fewer than three channels all
    colours show the first, of more the first three are shown."""
    pixels = images.detach().float().cpu() * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    levels = (pixels * 255).round().clamp(0, 255).to(torch.uint8)
    channels = levels.shape[-3]
    shown = [0, 0, 0] if channels < 3 else [0, 1, 2]
    return levels if channels == 3 else levels[..., shown, :, :]


def save_picture(path: Path, picture: UInt8[Tensor, "3 height width"]) -> None:
    """Write one image as PNG, whole or not at all."""
    image = Image.fromarray(rearrange(picture, "c h w -> h w c").numpy())
    write_whole(path, lambda temporary: image.save(temporary, format="PNG"))

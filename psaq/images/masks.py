"""Pictures with a mask each: a class for every pixel."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from psaq.errors import PsaqError
from psaq.images.folder import IMAGE_SUFFIXES, FoundPictures, find_pictures
from psaq.images.preprocessing import read_image
from psaq.images.whole import WholePicture

VOID = 255
_INDEXED = ("L", "P", "1")
"""Modes of pictures whose pixels are numbers of classes."""


@dataclass(frozen=True)
class MaskTruth:
    """What is known of a picture."""

    mask: UInt8[Tensor, "height width"]
    """A class for each pixel."""
    ignore: int
    """The number that stands for void."""
    file: str
    """Where the mask comes from."""

    @property
    def size(self) -> tuple[int, int]:
        """The picture's height and width."""
        height, width = self.mask.shape
        return height, width


class SegmentationPictures(Dataset[tuple[Tensor, MaskTruth]]):
    """Pictures as a model wants them, each with its mask at the picture's own size.

    Attributes:
        samples: each picture's file and its mask's, in sorted path order.
        passed_over: pictures beside them that are not read, by their ending.
    """

    def __init__(
        self,
        samples: list[tuple[Path, Path]],
        found: FoundPictures,
        model: nn.Module,
        ignore: int,
        labels: Sequence[int] | None,
    ):
        self.samples = samples
        self.passed_over = found.passed_over
        self._preprocess = WholePicture(model)
        self._ignore = ignore
        self._classes = None if labels is None else _classes_of_values(labels, ignore)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "channels height width"], MaskTruth]:
        """Raises PsaqError for a picture or mask that cannot be read, or of another size than its picture."""
        picture, mask = self.samples[index]
        image, classes = read_image(picture, str(picture)), _read_mask(mask)
        if (image.height, image.width) != tuple(classes.shape):
            raise PsaqError(
                f"{mask}: is {classes.shape[1]}×{classes.shape[0]}, its picture {image.width}×{image.height}; "
                "a mask has a value for each pixel of its picture, as it is stored, not as EXIF turns it"
            )
        void = self._ignore if self._classes is None else VOID
        return self._preprocess(image), MaskTruth(self._as_the_model_counts(classes, mask), void, str(mask))

    def _as_the_model_counts(self, values: UInt8[Tensor, "height width"], file: Path) -> UInt8[Tensor, "height width"]:
        if self._classes is None:
            return values
        classes = self._classes[values.long()]
        if int(classes.min()) < 0:
            raise PsaqError(
                f"{file}: holds {int(values[classes < 0][0])}, which is neither among labels nor void ({self._ignore})"
            )
        return classes.byte()

    def picture(self, index: int) -> Image.Image:
        """A picture as it is on disk."""
        file = self.samples[index][0]
        return read_image(file, str(file))


def segmentation(
    images_dir: Path | str,
    masks_dir: Path | str,
    model: nn.Module,
    ignore: int = 255,
    labels: Sequence[int] | None = None,
) -> SegmentationPictures:
    """Pictures and their masks, which bear the same names but for the ending, in two folders.

    The whole picture is resized to the model's size and normalised as it wants. A mask is a picture of one channel
    (greys, or colours by index) whose pixels are numbers of classes.

    Args:
        ignore: the number that stands for void.
        labels: the number that stands in the masks for each of the model's classes, in order; None where they are the
            same. For ADE20K's masks, whose 0 is void: ``ignore=0, labels=range(1, 151)``.

    Raises:
        PsaqError: a folder that is not there, no picture in it, or pictures and masks that do not pair.
    """
    images_dir, masks_dir = Path(images_dir), Path(masks_dir)
    for folder in (images_dir, masks_dir):
        if not folder.is_dir():
            raise PsaqError(f"{folder}: there is no such folder")
    if not 0 <= ignore <= 255:
        raise PsaqError(f"ignore {ignore}: must lie between 0 and 255, as a mask's pixels do")
    found = find_pictures(images_dir)
    if not found.files:
        raise PsaqError(f"{images_dir}: holds no picture ({', '.join(sorted(IMAGE_SUFFIXES))})")
    pictures, masks = (_by_name(files, folder) for files, folder in _both(found.files, images_dir, masks_dir))
    for name in [*pictures, *masks]:
        if name not in pictures or name not in masks:
            lacking, other = (masks_dir, pictures) if name in pictures else (images_dir, masks)
            raise PsaqError(
                f"{other[name]}: has no partner {name} in {lacking}; every picture needs a mask of its name"
            )
    return SegmentationPictures([(pictures[name], masks[name]) for name in pictures], found, model, ignore, labels)


def _both(pictures: list[Path], images_dir: Path, masks_dir: Path) -> list[tuple[list[Path], Path]]:
    return [(pictures, images_dir), (find_pictures(masks_dir).files, masks_dir)]


def _by_name(files: list[Path], folder: Path) -> dict[Path, Path]:
    named: dict[Path, Path] = {}
    for file in files:
        name = file.relative_to(folder).with_suffix("")
        if name in named:
            raise PsaqError(f"{file}: bears the name of {named[name]} but for the ending; keep one of them")
        named[name] = file
    return named


def _classes_of_values(labels: Sequence[int], ignore: int) -> Int[Tensor, "values"]:
    """The class of each value of a mask: −1 where it has none, void stays."""
    if len(set(labels)) < len(labels) or ignore in labels or not all(0 <= value <= 255 for value in labels):
        raise PsaqError(f"labels {list(labels)}: must be numbers from 0 to 255, each once, and none void ({ignore})")
    classes = torch.full((256,), -1)
    classes[list(labels)] = torch.arange(len(labels))
    classes[ignore] = VOID
    return classes


def _read_mask(file: Path) -> UInt8[Tensor, "height width"]:
    try:
        with Image.open(file) as image:
            kind, mode, values = image.format, image.mode, np.array(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PsaqError(f"{file}: is not a mask that can be read ({error}); replace or remove it") from error
    if kind == "JPEG":
        raise PsaqError(f"{file}: is a JPEG, which changes the numbers of classes; save masks as PNG")
    if mode not in _INDEXED and not (mode.startswith("I") and values.max(initial=0) <= 255):
        raise PsaqError(f"{file}: is a picture of mode {mode}; a mask has one channel of numbers of classes up to 255")
    return torch.from_numpy(values.astype(np.uint8))

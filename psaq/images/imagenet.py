"""Image folders: ImageNet by wnid, complete or partial, or a folder per class in the model's order."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path

from jaxtyping import Float
from PIL import Image
from timm.data import ImageNetInfo
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import transforms
from torchvision.transforms import functional

from psaq.errors import PsaqError
from psaq.models.zoo import DataConfig, data_config, num_classes

IMAGE_SUFFIXES = {".jpeg", ".jpg", ".png", ".webp", ".bmp"}


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Labelled image files, preprocessed for a model: (normalised image (3, height, width), class index).

    Attributes:
        samples: each image's file and class index, in sorted path order.
    """

    def __init__(self, samples: list[tuple[Path, int]], preprocess: Callable[[Image.Image], Tensor]):
        self.samples = samples
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "3 height width"], int]:
        path, label = self.samples[index]
        return self.preprocess(read_image(path)), label


def imagenet(root: Path | str, model: nn.Module, crop_pct: float | None = None) -> ImageFolder:
    """The images under ``root``, one folder per class, preprocessed as ``model`` was trained.

    A folder named by an ImageNet wnid ("n01440764") has that wnid's class among all 1000, however few are
    present. Folders of other names are the model's classes in sorted order.

    Args:
        crop_pct: part of the resized image's side that the centre crop keeps; None takes the model's own.

    Raises:
        PsaqError: no such folder, no images in it, or classes that are not the model's.
    """
    root = Path(root)
    labels = _class_indices(root, num_classes(model))
    samples = [(file, label) for folder, label in labels.items() for file in _image_files(folder)]
    if not samples:
        raise PsaqError(f"{root}: its class folders hold no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    config = data_config(model)
    return ImageFolder(samples, Preprocessing(config if crop_pct is None else replace(config, crop_pct=crop_pct)))


@dataclass(frozen=True)
class Preprocessing:
    """Resize so that the crop keeps ``crop_pct`` of the side, crop the centre, normalise.

    The shorter side is resized to floor(size / crop_pct). An image that is at most a pixel larger is cropped as it
    is: resampling would only blur it. Where the crop cannot lie in the very centre, it lies half a pixel up and left.

    Raises:
        PsaqError: ``crop_pct`` outside of (0, 1].
    """

    config: DataConfig

    def __post_init__(self) -> None:
        if not 0 < self.config.crop_pct <= 1:
            raise PsaqError(f"crop_pct {self.config.crop_pct}: must lie above 0 and be at most 1")

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 height width"]:
        cropped = _centre_crop(self._resized(image), self.config.image_size)
        return functional.normalize(functional.to_tensor(cropped), self.config.mean, self.config.std)

    def _resized(self, image: Image.Image) -> Image.Image:
        height, width = (math.floor(side / self.config.crop_pct) for side in self.config.image_size)
        if 0 <= min(image.height - height, image.width - width) <= 1:
            return image
        scale = max(Fraction(height, image.height), Fraction(width, image.width))
        size = [int(image.height * scale), int(image.width * scale)]
        return functional.resize(image, size, transforms.InterpolationMode(self.config.interpolation))


def read_image(path: Path) -> Image.Image:
    """An image file in RGB. Raises PsaqError, naming the file, where it is damaged."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PsaqError(f"{path}: is not an image that can be read ({error}); replace or remove it") from error


def _centre_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    height, width = size
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


@cache
def imagenet_wnids() -> dict[str, int]:
    """WordNet id → class index, for the 1000 classes of ILSVRC-2012."""
    return {wnid: index for index, wnid in enumerate(ImageNetInfo("imagenet-1k").label_names())}


def _class_indices(root: Path, classes: int) -> dict[Path, int]:
    folders = _class_folders(root)
    wnids = imagenet_wnids()
    if classes == len(wnids) and all(folder.name in wnids for folder in folders):
        return {folder: wnids[folder.name] for folder in folders}
    if len(folders) != classes:
        shown = ", ".join(folder.name for folder in folders[:3])
        raise PsaqError(
            f"{root}: has {len(folders)} folders ({shown}, …) for the model's {classes} classes; name a folder "
            "with one subfolder per class, in the model's order, or ImageNet's wnids for a model of its 1000 classes"
        )
    return {folder: index for index, folder in enumerate(folders)}


def _class_folders(root: Path) -> list[Path]:
    if not root.is_dir():
        raise PsaqError(f"{root}: there is no such folder of images")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise PsaqError(f"{root}: holds no class folders; expected one folder of images per class")
    return folders


def _image_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())

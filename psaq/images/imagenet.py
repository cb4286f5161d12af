"""Image folders: ImageNet by wnid, complete or partial, or a folder per class in the model's order."""

from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

from jaxtyping import Float
from PIL import Image
from timm.data import ImageNetInfo
from torch import Tensor, nn
from torch.utils.data import Dataset

from psaq.errors import PsaqError
from psaq.images.folder import IMAGE_SUFFIXES, counted, find_pictures
from psaq.images.hugging_face import hugging_face_images, is_hugging_face
from psaq.images.preprocessing import preprocessing_for, read_image
from psaq.models.zoo import num_classes
from psaq.progress import note


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Labelled image files, preprocessed for a model: (normalised image (3, height, width), class index).

    Attributes:
        samples: each image's file and class index, in sorted path order.
        passed_over: pictures beside them that are not read, by their ending.
    """

    def __init__(
        self,
        samples: list[tuple[Path, int]],
        preprocess: Callable[[Image.Image], Tensor],
        passed_over: Counter[str] | None = None,
    ):
        self.samples = samples
        self.preprocess = preprocess
        self.passed_over = passed_over or Counter()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "channels height width"], int]:
        path, label = self.samples[index]
        return self.preprocess(read_image(path, str(path))), label


def imagenet(root: Path | str, model: nn.Module, crop_pct: float | None = None) -> Dataset[tuple[Tensor, int]]:
    """The images under ``root``, one folder per class, preprocessed as ``model`` was trained.

    A folder named by an ImageNet wnid ("n01440764") has that wnid's class among all 1000, however few are
    present. Folders of other names are the model's classes in sorted order. Of a Hugging Face data set it is the
    validation split.

    Args:
        crop_pct: part of the resized image's side that the centre crop keeps; None takes the model's own.

    Raises:
        PsaqError: no such folder, no images in it, a link that leads nowhere, or classes that are not the model's.
    """
    root = Path(root)
    if is_hugging_face(root):
        return hugging_face_images(root, model, "validation", crop_pct)
    labels = _class_indices(root, num_classes(model))
    found = {label: find_pictures(folder) for folder, label in labels.items()}
    samples = [(file, label) for label, pictures in found.items() for file in pictures.files]
    if not samples:
        raise PsaqError(f"{root}: its class folders hold no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    passed_over = sum((pictures.passed_over for pictures in found.values()), Counter[str]())
    if passed_over:
        note(f"{root}: {len(samples)} images, {counted(passed_over)}: psaq reads {', '.join(sorted(IMAGE_SUFFIXES))}")
    return ImageFolder(samples, preprocessing_for(model, crop_pct), passed_over)


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

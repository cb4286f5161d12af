"""Pictures with boxes, annotated as COCO does."""

import contextlib
import importlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from psaq.errors import PsaqError
from psaq.files import read_json
from psaq.images.preprocessing import read_image
from psaq.images.whole import WholePicture
from psaq.models.heads import label_names

_HUGE = 1e9  # pixels; NaN is not below it either
_SMALL, _MEDIUM = 32**2, 96**2  # pixels, from which on an object is COCO's medium and large


@dataclass(frozen=True)
class CocoTruth:
    """Which picture it is, and how large."""

    image_id: int
    height: int
    width: int
    labels: tuple[int, ...] | None = None
    """The category of each of the model's labels; None where they are the same numbers."""

    @property
    def size(self) -> tuple[int, int]:
        """The picture's height and width."""
        return self.height, self.width

    def category(self, label: int) -> int:
        """The category of one of the model's labels. Raises PsaqError for one that was given no category."""
        if self.labels is None:
            return label
        if not 0 <= label < len(self.labels):
            raise PsaqError(
                f"label {label} of the model: labels names a category for 0 to {len(self.labels) - 1} alone"
            )
        return self.labels[label]


class CocoAnnotations:
    """Boxes as COCO writes them, and what is asked of them to score others.

    Attributes:
        annotations: the file's contents, checked.
        image_ids: the pictures' numbers, in order.
        has_masks: whether every object has its outline.
    """

    def __init__(self, annotations: dict[str, Any], source: Path | str):
        self.annotations = annotations
        self.image_ids = [image["id"] for image in annotations["images"]]
        objects = annotations["annotations"]
        self.has_masks = bool(objects) and all(each.get("segmentation") for each in objects)
        self._source = source

    def coco(self) -> Any:
        """The annotations as pycocotools holds them."""
        with contextlib.redirect_stdout(io.StringIO()):  # it reports to whoever reads the screen
            coco = pycocotools().coco.COCO()
            # Counted from 1: it takes an object whose number is 0 for one that nobody has found.
            objects = [{**each, "id": number} for number, each in enumerate(self.annotations["annotations"], 1)]
            coco.dataset = {**self.annotations, "annotations": objects}
            coco.createIndex()
        return coco

    def class_names(self) -> dict[int, str]:
        """What each of the model's labels is called."""
        return self.category_names()

    def category_names(self) -> dict[int, str]:
        """What each category is called."""
        return {each["id"]: str(each.get("name", each["id"])) for each in self.annotations["categories"]}

    def check_categories(self, found: set[int]) -> None:
        """Raises PsaqError where not one of the categories that a model found is among the annotated ones."""
        known = {category["id"] for category in self.annotations["categories"]}
        if found and not found & known:
            raise PsaqError(
                f"{self._source}: has the categories {', '.join(map(str, sorted(known)))}, the model finds "
                f"{', '.join(map(str, sorted(found)))}; say with labels which category each of its labels is"
            )

    def sizes_there(self) -> list[bool]:
        """For each of COCO's six scores whether there is any object that it is of."""
        areas = [each["area"] for each in self.annotations["annotations"] if not each["iscrowd"]]
        sizes = [any(low <= area <= high for area in areas) for low, high in ((0, _SMALL), (_SMALL, _MEDIUM))]
        return [bool(areas)] * 3 + [*sizes, any(area >= _MEDIUM for area in areas)]


class CocoPictures(CocoAnnotations, Dataset[tuple[Tensor, CocoTruth]]):
    """Pictures as a model wants them, each with its number among the annotations."""

    def __init__(self, folder: Path, file: Path, annotations: dict[str, Any], model: nn.Module, labels: Any):
        super().__init__(annotations, file)
        self._folder, self._labels = folder, labels
        self._preprocess = WholePicture(model)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "channels height width"], CocoTruth]:
        """Raises PsaqError for a picture that cannot be read, or that has another size than is said."""
        known, image = self.annotations["images"][index], self.picture(index)
        if (image.width, image.height) != (known["width"], known["height"]):
            raise PsaqError(
                f"{self._folder / known['file_name']}: is {image.width}×{image.height}, {self._source} says "
                f"{known['width']}×{known['height']} of image {known['id']}; its boxes lie in other pixels"
            )
        return self._preprocess(image), CocoTruth(known["id"], image.height, image.width, self._labels)

    def class_names(self) -> dict[int, str]:
        """What each of the model's labels is called."""
        names = self.category_names()
        if self._labels is None:
            return names
        return {label: names[category] for label, category in enumerate(self._labels)}

    def picture(self, index: int) -> Image.Image:
        """A picture as it is on disk."""
        file = self._folder / self.annotations["images"][index]["file_name"]
        return read_image(file, str(file))


def coco(
    images_dir: Path | str, annotations: Path | str, model: nn.Module, labels: Sequence[int] | None = None
) -> CocoPictures:
    """Pictures and their annotations in COCO's format.

    A detector that takes a list of images gets them in [0, 1] at their own size; for any other model the whole picture
    is resized to its size and normalised as it wants.

    Args:
        annotations: the JSON file with images, annotations and categories.
        labels: the category of each of the model's labels, in order; None where they are the same numbers.

    Raises:
        PsaqError: a file or picture that is not there, annotations that cannot be right (each named by its number), or
            pycocotools, which scores boxes, is not installed.
    """
    pycocotools()
    folder, file = Path(images_dir), Path(annotations)
    if not folder.is_dir():
        raise PsaqError(f"{folder}: there is no such folder")
    told = None if labels is None else tuple(labels)
    content = _checked(read_json(file), folder, file)
    _check_labels(told, {category["id"]: category.get("name") for category in content["categories"]}, model, file)
    return CocoPictures(folder, file, content, model, told)


def pycocotools() -> Any:
    """The library that scores boxes. Raises PsaqError where it is not installed."""
    try:
        for name in ("coco", "cocoeval", "mask"):
            importlib.import_module(f"pycocotools.{name}")
    except ImportError as error:
        raise PsaqError(f"boxes need pycocotools ({error}); install it: pip install 'psaq[dense]'") from error
    return importlib.import_module("pycocotools")


def _checked(content: Any, folder: Path, file: Path) -> dict[str, Any]:
    """The annotations, each with its area and crowd flag. Raises PsaqError for the first that cannot be right."""
    lists = {name: _entries(content, name, file) for name in ("images", "annotations", "categories")}
    for name in ("images", "categories"):
        if not lists[name]:
            raise PsaqError(f"{file}: names no {name}")
    for name, entries in lists.items():
        _check_ids(entries, name, file)
    for image in lists["images"]:
        _check_image(image, folder, file)
    images = {image["id"]: image for image in lists["images"]}
    categories = {category["id"] for category in lists["categories"]}
    annotations = [_completed(each, images, categories, file) for each in lists["annotations"]]
    return {**content, "annotations": annotations}


def _entries(content: Any, name: str, file: Path) -> list[dict[str, Any]]:
    entries = content.get(name) if isinstance(content, Mapping) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise PsaqError(f"{file}: holds no list of {name}; it must be a COCO file of images, annotations, categories")
    return entries


def _check_ids(entries: list[dict[str, Any]], name: str, file: Path) -> None:
    for place, entry in enumerate(entries):
        if not _is_whole(entry.get("id")):
            raise PsaqError(f"{file}: entry {place} of {name} has no whole number as its id")
    number, times = Counter(entry["id"] for entry in entries).most_common(1)[0] if entries else (0, 1)
    if times > 1:
        raise PsaqError(f"{file}: id {number} stands {times} times among {name}; each needs its own")


def _check_image(image: dict[str, Any], folder: Path, file: Path) -> None:
    name = image.get("file_name")
    if not isinstance(name, str) or not all(_is_count(image.get(side)) for side in ("width", "height")):
        raise PsaqError(f"{file}: image {image['id']} needs a file_name, a width and a height in pixels")
    if not (folder / name).is_file():
        raise PsaqError(f"{file}: image {image['id']}: there is no {folder / name}")


def _completed(entry: dict[str, Any], images: Mapping[int, Any], categories: set[int], file: Path) -> dict[str, Any]:
    fault = _fault(entry, images, categories)
    if fault is not None:
        raise PsaqError(f"{file}: annotation {entry['id']}: {fault}; mend or remove it")
    known = {name: value for name, value in entry.items() if value is not None}
    return {"area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0, **known}


def _fault(entry: Mapping[str, Any], images: Mapping[int, Any], categories: set[int]) -> str | None:
    """What cannot be right of an annotation."""
    values: list[Any] = [entry.get(name) for name in ("image_id", "category_id", "bbox", "area")]
    image, category, box, area = values
    if not _is_whole(image) or image not in images:
        return f"its image {image!r} is not among the images"
    if not _is_whole(category) or category not in categories:
        return f"its category {category!r} is not among the categories"
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        return f"its bbox {box!r} is not [left, top, width, height]"
    if min(box[2:]) <= 0:
        return f"its bbox {box} has no extent"
    if _is_outside(box, images[image]):
        return f"its bbox {box} lies outside of its image"
    if area is not None and not (_is_finite(area) and area >= 0):
        return f"its area {area!r} is no size"
    if entry.get("iscrowd") not in (None, 0, 1):
        return f"its iscrowd {entry['iscrowd']!r} is neither 0 nor 1"
    if entry.get("segmentation") and not _is_outline(entry["segmentation"]):
        return "its segmentation is neither a list of polygons [x, y, x, y, x, y, …] nor run lengths (size, counts)"
    return None


def _check_labels(told: tuple[int, ...] | None, categories: Mapping[int, Any], model: nn.Module, file: Path) -> None:
    """Raises PsaqError where labels are told that are no categories, or where names show that they should be told."""
    names = label_names(model)
    if told is not None:
        unknown = [label for label in told if label not in categories]
        if unknown or len(set(told)) < len(told):
            known = ", ".join(map(str, sorted(categories)))
            raise PsaqError(f"labels {list(told)}: must be categories of {file} ({known}), each once")
        if len(told) < len(names):
            raise PsaqError(f"labels: {len(told)} categories for the model's {len(names)} labels; name one for each")
        return
    by_name = {name: label for label, name in names.items()}
    for category, name in categories.items():
        if name in by_name and by_name[name] != category and names.get(category) != name:
            raise PsaqError(
                f"{file}: {name!r} is category {category}, and the model's label {by_name[name]}; "
                "say with labels which category each of its labels is"
            )


def _is_outline(value: Any) -> bool:
    if isinstance(value, dict):
        return {"size", "counts"} <= value.keys()
    return isinstance(value, list) and all(map(_is_polygon, value))


def _is_polygon(value: Any) -> bool:
    return isinstance(value, list) and len(value) >= 6 and len(value) % 2 == 0 and all(map(_is_finite, value))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_outside(box: list[float], image: Mapping[str, Any]) -> bool:
    left, top, width, height = box
    return left >= image["width"] or top >= image["height"] or left + width <= 0 or top + height <= 0


def _is_count(value: Any) -> bool:
    return _is_whole(value) and value > 0


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _HUGE

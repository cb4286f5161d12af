"""Procedural scenes for segmenters and detectors: the object's pixels and its box are known exactly."""

from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from psaq.errors import PsaqError
from psaq.images.coco import CocoAnnotations, CocoTruth
from psaq.images.masks import VOID, MaskTruth
from psaq.images.scenes import Scenes, render_scenes
from psaq.images.whole import WholePicture
from psaq.models.data import data_config
from psaq.rendering.painter import CLASS_NAMES, SIZE

_SHOWN = 0.5  # of a pixel that the object covers, from which on it is the object's


class _SceneTruths(Dataset[tuple[Tensor, object]]):
    """The first ``count`` scenes of a seed. Raises PsaqError where none are asked for, or the model takes others."""

    def __init__(self, count: int, seed: int, model: nn.Module):
        size = data_config(model).image_size
        if size != (SIZE, SIZE):
            raise PsaqError(
                f"scenes are {SIZE}×{SIZE} images, the model takes {size[0]}×{size[1]}; take other pictures"
            )
        render_scenes([0], seed)
        if count < 1:
            raise PsaqError(f"{count} scenes: must be at least 1")
        self._count, self._seed = count, seed
        self._preprocess = WholePicture(model)

    def __len__(self) -> int:
        return self._count

    def picture(self, index: int) -> Image.Image:
        """A scene as a picture."""
        return _picture(self._scene(index))

    def _scene(self, index: int) -> Scenes:
        if not 0 <= index < self._count:
            raise IndexError(f"scene index out of range for {self._count} scenes")
        return render_scenes([index], self._seed)


class ScenePixels(_SceneTruths):
    """Scenes with masks: 0 is the background's, the objects' classes count from 1."""

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "3 64 64"], MaskTruth]:
        scene = self._scene(index)
        return self._preprocess(_picture(scene)), MaskTruth(scene_masks(scene)[0].byte(), VOID, f"scene {index}")

    def class_names(self) -> dict[int, str]:
        """What each class is called."""
        return dict(enumerate(("background", *CLASS_NAMES)))


class SceneBoxes(_SceneTruths, CocoAnnotations):
    """Scenes with the box of their object; classes count from 1."""

    def __init__(self, count: int, seed: int, model: nn.Module):
        _SceneTruths.__init__(self, count, seed, model)
        scenes = render_scenes(count, seed)
        objects: list[dict[str, Any]] = [
            {"id": index + 1, "image_id": index, "category_id": 1 + int(label), "bbox": box, "iscrowd": 0}
            for index, (label, box) in enumerate(zip(scenes.labels, map(_extent, scene_masks(scenes)), strict=True))
        ]
        for each in objects:
            each["area"] = each["bbox"][2] * each["bbox"][3]
        images = [{"id": index, "file_name": "", "height": SIZE, "width": SIZE} for index in range(count)]
        categories = [{"id": 1 + index, "name": name} for index, name in enumerate(CLASS_NAMES)]
        content = {"images": images, "annotations": objects, "categories": categories}
        CocoAnnotations.__init__(self, content, "scenes")

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "3 64 64"], CocoTruth]:
        return self._preprocess(self.picture(index)), CocoTruth(index, SIZE, SIZE)


def scene_masks(scenes: Scenes) -> Tensor:
    """(scenes, height, width): a class for each pixel, 0 where there is no object."""
    return (scenes.coverage >= _SHOWN) * (1 + scenes.labels[:, None, None])


def _extent(mask: Tensor) -> list[float]:
    """Left, top, width and height of what is not background."""
    rows, columns = mask.nonzero(as_tuple=True)
    left, top = int(columns.min()), int(rows.min())
    return [float(left), float(top), float(columns.max() + 1 - left), float(rows.max() + 1 - top)]


def _picture(scene: Scenes) -> Image.Image:
    pixels = (255 * scene.images[0]).round().permute(1, 2, 0).numpy().astype(np.uint8)
    return Image.fromarray(pixels)

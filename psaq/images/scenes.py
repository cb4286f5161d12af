"""Procedural scenes: a patterned object of ten classes before patterned backgrounds, a pure function of a seed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import Dataset

from psaq.errors import PsaqError
from psaq.models.zoo import data_config, num_classes
from psaq.rendering.draws import Draws
from psaq.rendering.painter import CLASS_NAMES, SIZE, Rendering, paint

__all__ = ["CLASS_NAMES", "SIZE", "SceneDataset", "Scenes", "render_scenes", "scene_batch"]

# Scenes painted at once: their planes stay in the cache.
_CHUNK = 16


@dataclass(frozen=True)
class Scenes:
    """Rendered scenes and what is known of them."""

    images: Float[Tensor, "images 3 64 64"]
    """Between 0 and 1, in steps of 1/255."""
    labels: Int[Tensor, "images"]
    """Indices into `CLASS_NAMES`."""
    coverage: Float[Tensor, "images 64 64"]
    """How much of every pixel shows the object, between 0 and 1: foreground against background, exactly."""


def render_scenes(which: int | Sequence[int] | Int[Tensor, "images"], seed: int = 0) -> Scenes:
    """Render the first so many scenes of a seed, or those of the given indices.

    Scene i of a seed always has the same bits, whatever is rendered with it.

    Raises:
        PsaqError: an index, the count or the seed is negative, or there is none.
    """
    indices = _indices(which, seed)
    renderings = list(_renderings(indices, seed))
    images = torch.from_numpy(np.concatenate([rendering.images for rendering in renderings]))
    coverage = torch.from_numpy(np.concatenate([rendering.coverage for rendering in renderings]))
    return Scenes(images.float() / 255, torch.from_numpy(_labels(indices, seed)), coverage)


def scene_batch(
    which: int | Sequence[int] | Int[Tensor, "images"], seed: int = 0
) -> tuple[Float[Tensor, "images 3 64 64"], Int[Tensor, "images"]]:
    """The images and the labels of `render_scenes`."""
    scenes = render_scenes(which, seed)
    return scenes.images, scenes.labels


class SceneDataset(Dataset[tuple[Tensor, int]]):
    """The first ``count`` scenes of a seed as (image, class index), normalised as ``model`` wants them.

    Without a model the images stay in [0, 1].

    Raises:
        PsaqError: no scenes are asked for, or the model takes other images or tells other classes apart.
    """

    def __init__(self, count: int, seed: int = 0, model: nn.Module | None = None) -> None:
        _indices(count, seed)
        self.count, self.seed = count, seed
        self._mean, self._std = _normalisation(model)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Several at once: what a DataLoader asks for, and faster than one by one."""
        if not all(0 <= index < self.count for index in indices):
            raise IndexError(f"scene index out of range for {self.count} scenes")
        images, labels = scene_batch(indices, self.seed)
        return list(zip((images - self._mean) / self._std, labels.tolist(), strict=True))


def _normalisation(model: nn.Module | None) -> tuple[Float[Tensor, "3 1 1"], Float[Tensor, "3 1 1"]]:
    if model is None:
        return torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    config = data_config(model)
    if config.image_size != (SIZE, SIZE) or num_classes(model) != len(CLASS_NAMES):
        raise PsaqError(
            f"scenes are {SIZE}×{SIZE} images of {len(CLASS_NAMES)} classes, the model takes "
            f"{config.image_size[0]}×{config.image_size[1]} and knows {num_classes(model)}; "
            "use micro_vit or micro_swin, or another data set"
        )
    mean, std = torch.tensor(config.mean), torch.tensor(config.std)
    return mean[:, None, None], std[:, None, None]


def _labels(indices: Int[np.ndarray, "images"], seed: int) -> Int[np.ndarray, "images"]:
    """Every ten scenes in a row show each class once, in an order that differs from ten to ten."""
    classes = len(CLASS_NAMES)
    turn = Draws(indices // classes, seed).choice(classes)
    return (indices + turn) % classes


def _renderings(indices: Int[np.ndarray, "images"], seed: int) -> Iterator[Rendering]:
    for start in range(0, len(indices), _CHUNK):
        chunk = indices[start : start + _CHUNK]
        yield paint(Draws(chunk, seed), _labels(chunk, seed))


def _indices(which: int | Sequence[int] | Tensor, seed: int) -> Int[np.ndarray, "images"]:
    indices = np.arange(which) if isinstance(which, int) else np.asarray(which, dtype=np.int64)
    if indices.ndim != 1 or len(indices) == 0 or indices.min() < 0 or not 0 <= seed < 2**63:
        raise PsaqError(
            f"scenes {which} of seed {seed}: give a count of at least 1, or a list of indices, none negative, "
            "and a seed from 0 to 2**63 - 1"
        )
    return indices

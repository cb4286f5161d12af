"""Scenes for training, rendered once and varied by symmetries that keep the class; scenes for measuring."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from psaq.images.scenes import SIZE, render_scenes, scene_batch
from psaq.models.zoo import data_config
from psaq.progress import progress_bar
from psaq.training.patch_classes import GRID

Images = Float[Tensor, "images 3 64 64"]

_CHUNK = 64


@dataclass(frozen=True)
class Batch:
    """What one training step sees."""

    images: Images
    labels: Int[Tensor, "images"]
    coverage: Float[Tensor, "images 8 8"]
    """The share of every patch that shows the object."""


@dataclass(frozen=True)
class TrainingScenes:
    """Rendered scenes, 8 bits deep."""

    images: UInt8[Tensor, "scenes 3 64 64"]
    labels: Int[Tensor, "scenes"]
    coverage: Float[Tensor, "scenes 8 8"]

    @classmethod
    def render(cls, count: int, seed: int) -> "TrainingScenes":
        """The first ``count`` scenes of ``seed``."""
        images = torch.empty(count, 3, SIZE, SIZE, dtype=torch.uint8)
        labels = torch.empty(count, dtype=torch.int64)
        coverage = torch.empty(count, GRID, GRID)
        for first in progress_bar(range(0, count, _CHUNK), description="render scenes", unit="batch"):
            part = range(first, min(first + _CHUNK, count))
            scenes = render_scenes(part, seed)
            images[first : part.stop] = (255 * scenes.images).round().to(torch.uint8)
            labels[first : part.stop] = scenes.labels
            coverage[first : part.stop] = F.avg_pool2d(scenes.coverage, SIZE // GRID)
        return cls(images, labels, coverage)

    def sample(self, count: int) -> Batch:
        """Random scenes, mirrored and with their colour channels permuted at random: neither changes a class."""
        chosen = torch.randint(len(self.labels), (count,))
        images = self.images[chosen][:, torch.randperm(3)].float() / 255
        coverage = self.coverage[chosen]
        if torch.rand(()) < 0.5:
            images, coverage = images.flip(-1), coverage.flip(-1)
        return Batch(images, self.labels[chosen], coverage)


def normalised(images: Images, model: nn.Module) -> Images:
    """Images in [0, 1] as the model wants them."""
    config = data_config(model)
    mean, std = torch.tensor(config.mean), torch.tensor(config.std)
    return (images - mean[:, None, None]) / std[:, None, None]


@torch.inference_mode()
def held_out_accuracy(model: nn.Module, count: int, seed: int) -> float:
    """Top-1 accuracy in percent on the first ``count`` scenes of ``seed``."""
    correct = 0
    for first in progress_bar(range(0, count, _CHUNK), description="measure", unit="batch"):
        images, labels = scene_batch(range(first, min(first + _CHUNK, count)), seed)
        correct += int((model(normalised(images, model)).argmax(dim=1) == labels).sum())
    return 100 * correct / count

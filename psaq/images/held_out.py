"""Scenes that no training has seen: to measure the bundled models on, and to stand for real images."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from psaq.images.scene_truths import SceneBoxes, ScenePixels
from psaq.images.scenes import SceneDataset

HELD_OUT_SEED = 1_000_033
"""Of scenes that training never saw: it draws from other seeds."""
CALIBRATION_SEED = 1_000_037
"""Of the scenes that stand for real images: neither trained nor evaluated on."""
_TRUTHS: dict[str, Any] = {"micro_segmenter": ScenePixels, "micro_detector": SceneBoxes}


def held_out_scenes(name: str, count: int, model: nn.Module, seed: int = HELD_OUT_SEED) -> Dataset[Any]:
    """So many scenes with what is known of them, as a bundled model takes them. Raises PsaqError as `SceneDataset`."""
    return _TRUTHS.get(name, SceneDataset)(count, seed, model)


def calibration_scenes(model: nn.Module, count: int) -> Tensor:
    """Scenes that stand for the real images Table 1's "Standard" is calibrated on."""
    return torch.stack([image for image, _ in SceneDataset(count, CALIBRATION_SEED, model).__getitems__(range(count))])

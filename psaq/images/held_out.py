"""The scenes that the bundled models are measured on, which no training has seen."""

from typing import Any

from torch import nn
from torch.utils.data import Dataset

from psaq.images.scene_truths import SceneBoxes, ScenePixels
from psaq.images.scenes import SceneDataset

HELD_OUT_SEED = 1_000_033
"""Of scenes that training never saw: it draws from other seeds."""
_TRUTHS: dict[str, Any] = {"micro_segmenter": ScenePixels, "micro_detector": SceneBoxes}


def held_out_scenes(name: str, count: int, model: nn.Module, seed: int = HELD_OUT_SEED) -> Dataset[Any]:
    """So many scenes with what is known of them, as a bundled model takes them. Raises PsaqError as `SceneDataset`."""
    return _TRUTHS.get(name, SceneDataset)(count, seed, model)

"""What most experiments on a classifier read: labelled pictures, and images as a synthesis leaves them."""

from pathlib import Path

import pytest
import torch
from noise_picture import noise_picture

from psaq.images.synthetic import SyntheticImages
from psaq.models.zoo import data_config


@pytest.fixture
def folders(vit, tmp_path) -> Path:
    """A folder with ``val``, a picture for each of ten classes, and ``run``, four images for ``vit``."""
    for index in range(10):
        folder = tmp_path / "val" / f"class{index}"
        folder.mkdir(parents=True)
        noise_picture((40, 40), 30 + 10 * index).save(folder / "a.png")
    config, noise = data_config(vit), torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    SyntheticImages(noise, torch.arange(4), config.mean, config.std).save(tmp_path / "run")
    return tmp_path

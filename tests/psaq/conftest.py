"""Small untrained models that every test of the upper floor may use."""

import pytest
from small_models import small_swin, small_vit
from torch import nn


@pytest.fixture
def vit() -> nn.Module:
    """A ViT of 2 blocks, 3 heads of 16 channels, 16 patches and a class token, for 32×32 images, 10 classes."""
    return small_vit()


@pytest.fixture
def swin() -> nn.Module:
    """A Swin of 2 stages of 2 blocks, 4×4 windows: 16 in the first stage, 4 in the second."""
    return small_swin()

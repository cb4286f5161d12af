"""A model made ready for batches of one shape."""

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psaq.errors import PsaqError


class CapturedModel(nn.Module):
    """A model for batches of one shape and dtype: images in, answers out, as the model itself gives them.

    Attributes:
        model: what was captured.
    """

    def __init__(self, model: nn.Module, images: Float[Tensor, "images 3 height width"]):
        super().__init__()
        self.model = model
        self._images = images.detach().clone()

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "images 3 height width"]) -> Any:
        """Raises PsaqError where the images are not of the captured shape and dtype."""
        captured = self._images
        if images.shape != captured.shape or images.dtype != captured.dtype:
            raise PsaqError(
                f"images of {tuple(images.shape)} in {images.dtype}: the model was captured for "
                f"{tuple(captured.shape)} in {captured.dtype}; capture it again for these"
            )
        return self._answer(images)

    @abstractmethod
    def _answer(self, images: Float[Tensor, "images 3 height width"]) -> Any:
        """For images of the captured shape."""

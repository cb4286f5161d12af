"""A model without the host's overhead: its launches recorded once in a CUDA graph, and replayed for every batch."""

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq_kernels.compiling import compile_before_use

WARM_UP = 3  # runs before the recording: what libraries and compilers do once must not be in it


def capture(model: nn.Module, images: Float[Tensor, "images 3 height width"]) -> "CapturedModel":
    """Record the model's inference on batches like ``images`` in a CUDA graph.

    At small batches a deployed model waits for Python and for its launches more than it computes; a graph is one
    launch. Triton kernels that are not compiled yet are compiled on all cores first.

    Args:
        model: on a CUDA or ROCm device, in evaluation mode: what `psaq.deploy` returned, that compiled by
            ``torch.compile``, or a float model.
        images: any batch of the shape and dtype that will be asked for.

    Raises:
        PsaqError: the model is not on such a device.
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        raise PsaqError(f"a CUDA graph needs a model on a GPU, this one is on {device.type}; call it as it is")
    return CapturedModel(model, images.to(device))


class CapturedModel(nn.Module):
    """A model for batches of one shape: images in, answers out, as the model itself gives them."""

    @torch.no_grad()
    def __init__(self, model: nn.Module, images: Float[Tensor, "images 3 height width"]):
        super().__init__()
        self.model = model
        self._images = images.clone()
        compile_before_use(lambda: model(self._images))
        self._warm_up()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._answers = model(self._images)

    def _warm_up(self) -> None:
        """On a stream of its own, as recording wants it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.model(self._images)
        torch.cuda.current_stream().wait_stream(stream)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "images 3 height width"]) -> Any:
        """Raises PsaqError where the images are not of the recorded shape and dtype."""
        recorded = self._images
        if images.shape != recorded.shape or images.dtype != recorded.dtype:
            raise PsaqError(
                f"images of {tuple(images.shape)} in {images.dtype}: the graph was recorded for "
                f"{tuple(recorded.shape)} in {recorded.dtype}; capture the model again for these"
            )
        recorded.copy_(images)
        self._graph.replay()
        return copy.deepcopy(self._answers)  # whatever holds its tensors; the next replay writes into the same ones

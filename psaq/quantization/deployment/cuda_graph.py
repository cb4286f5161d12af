"""A model without the host's overhead: its launches recorded once in a CUDA graph, and replayed for every batch."""

import copy
from threading import Lock
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psaq.quantization.deployment.captured import CapturedModel
from psaq_kernels.compiling import compile_before_use

WARM_UP = 3  # runs before the recording: what libraries and compilers do once must not be in it


class RecordedModel(CapturedModel):
    """On a CUDA or ROCm device: its launches are one, the graph's."""

    @torch.no_grad()
    def __init__(self, model: nn.Module, images: Float[Tensor, "images 3 height width"]):
        super().__init__(model, images)
        with torch.cuda.device_of(self._images):  # whose streams and graphs are meant
            compile_before_use(lambda: model(self._images))
            self._warm_up()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._answers = model(self._images)
        self._one_at_a_time = Lock()

    def _warm_up(self) -> None:
        """On a stream of its own, as recording wants it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.model(self._images)
        torch.cuda.current_stream().wait_stream(stream)

    def _answer(self, images: Float[Tensor, "images 3 height width"]) -> Any:
        with self._one_at_a_time, torch.cuda.device_of(self._images):
            self._images.copy_(images)
            self._graph.replay()
            return copy.deepcopy(self._answers)  # whatever holds its tensors; the next replay writes into the same ones

"""A deployed model on a CPU, compiled for batches of one shape with its weights as constants."""

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from psaq.errors import PsaqError
from psaq.models.copying import copied
from psaq.models.transformers_library import first_line
from psaq.quantization.deployment.captured import CapturedModel
from psaq.quantization.deployment.deploy import IntegerModel
from psaq.quantization.deployment.integer import IntegerLinear

_TUNED = True
"""Whether the compiler may multiply by itself where it is faster than oneDNN."""


class FrozenModel(CapturedModel):
    """Its integers are the compiler's constants: what changes in ``model`` later changes nothing here."""

    @torch.no_grad()
    def __init__(self, model: IntegerModel, images: Float[Tensor, "images 3 height width"]):
        super().__init__(model, images)
        frozen = copied(model)
        for module in frozen.modules():
            if isinstance(module, IntegerLinear):
                module.freeze()
        self._compiled = torch.compile(frozen, dynamic=False)
        with redirect_stderr(io.StringIO()):  # the compiler's table of every product's candidates
            try:
                self._answer(images)
            except torch._dynamo.exc.TorchDynamoException as error:
                raise PsaqError(
                    f"torch.compile does not compile this model here ({first_line(error)}); it needs a C++ compiler "
                    "and a model that it takes whole; call the model as it is"
                ) from error

    def _answer(self, images: Float[Tensor, "images 3 height width"]) -> Any:
        # What the compiler guards against stays as it was: the mode, and one tensor, however its images are laid out.
        with torch.inference_mode(False), torch.no_grad(), _constants():
            return self._compiled(self._images.copy_(images))


@contextmanager
def _constants() -> Iterator[None]:
    """torch.compile reads this while it traces, before it would heed its own ``options``."""
    import torch._inductor.config

    with torch._inductor.config.patch(freezing=True, max_autotune=_TUNED):
        yield

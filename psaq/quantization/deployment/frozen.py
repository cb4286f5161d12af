"""A deployed model on a CPU, compiled for batches of one shape with its weights as constants."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

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
        # As one graph of a private copy, for one shape and in one mode: a call finds nothing changed, so nothing is
        # looked up, which takes a tenth of a single image's time.
        self._compiled = torch.compile(
            _apart(frozen),
            fullgraph=True,
            dynamic=False,
            options={"guard_filter_fn": torch.compiler.skip_all_guards_unsafe},
        )
        try:
            self._answer(images)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise PsaqError(
                f"torch.compile does not compile this model here ({first_line(error)}); it needs a C++ compiler "
                "and a model that it takes whole; call the model as it is"
            ) from error

    def _answer(self, images: Float[Tensor, "images 3 height width"]) -> Any:
        # The modes and the images' layout of the first call: nothing looks whether they are.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False), _constants():
            return self._compiled(torch.empty_like(self._images).copy_(images))


def _apart(model: nn.Module) -> Callable[[Tensor], Any]:
    """The model's call as code of its own: of any code the compiler makes eight versions and no more, and all models
    share theirs."""

    def answer(images: Tensor) -> Any:
        return model(images)

    answer.__code__ = answer.__code__.replace()
    return answer


@contextmanager
def _constants() -> Iterator[None]:
    """torch.compile reads this while it traces, before it would heed its own ``options``. The compiler's tables of
    every product's candidates are not shown."""
    import torch._inductor.config

    with torch._inductor.config.patch(
        freezing=True,
        max_autotune=_TUNED,
        max_autotune_report_choices_stats=False,
        autotune_num_choices_displayed=0,
    ):
        yield

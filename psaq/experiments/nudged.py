"""What else a model might answer if its float arithmetic were rounded otherwise."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from psaq.quantization.model.points import Point, all_points
from psaq.quantization.quantizers.affine import Quantizer

LAST_PLACE = 1e-7
"""A unit in the last place of float32, as a part of the number: what a sum loses or gains in another order."""


@contextmanager
def nudged(modules: Iterable[nn.Module], by: float, draw: torch.Generator) -> Iterator[None]:
    """While it lasts, what reaches a quantisation point of ``modules`` and what any other of them emits is changed by
    a part of about ``by``, drawn anew for every element.

    An implementation that does not compute the very same bits cannot be expected to agree better than these.
    """

    def nudge(x: Tensor) -> Tensor:
        return x * (1 + by * torch.randn(x.shape, generator=draw).to(x.device))

    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: nudge(inputs[0]))
        if isinstance(module, Point | Quantizer)
        else module.register_forward_hook(lambda _, __, output: nudge(output))
        for module in modules
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def float_arithmetic(qmodel: nn.Module) -> list[nn.Module]:
    """Where a quantised model's floats come from: its norms and GELUs, and the points behind sums of products."""
    sums = [point for name, point in all_points(qmodel).items() if name.endswith((".output", ".scores"))]
    return [*sums, *(module for module in qmodel.modules() if isinstance(module, nn.LayerNorm | nn.GELU))]

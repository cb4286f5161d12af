"""What a layer multiplies its weight with over the calibration images: quantised, and as it was."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psaq.models.calling import run
from psaq.quantization.model.layers import QuantLayer
from psaq.quantization.passes.im2col import Vectors, vectors_of

_MOST_INPUTS = 8192
"""Of a layer: the second moments of more would take gigabytes, and their factor hours."""

ROUNDING = "rounding by second moments"
ROUNDING_REASON = f"grouped, transposed and padded convolutions and layers of more than {_MOST_INPUTS} inputs have none"


class InputMean:
    """The mean of what a layer multiplies its weight with, in float64, and how many of them each of its calls had."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self._sum: Tensor | None = None

    def add(self, vectors: Vectors) -> None:
        """Count in a call."""
        total = vectors.sum()
        self._sum = total if self._sum is None else self._sum + total
        self.counts.append(len(vectors))

    @property
    def mean(self) -> Float[Tensor, " in"]:
        """E[x]."""
        assert self._sum is not None
        return self._sum / sum(self.counts)


@torch.no_grad()
def input_means(model: nn.Module, batches: Iterable[Tensor], layers: Iterable[str]) -> Mapping[str, InputMean]:
    """Of each of the layers that is a product, over one pass of all batches through a converted model."""
    products = {name: model.get_submodule(name) for name in layers if is_product(model.get_submodule(name))}
    means = {name: InputMean() for name in products}

    def count(name: str, _: nn.Module, inputs: tuple[Tensor]) -> None:
        means[name].add(vectors_of(products[name], inputs[0]))

    with ExitStack() as stack:
        for name, layer in products.items():
            point = layer.get_submodule("input")
            stack.callback(point.register_forward_pre_hook(partial(count, name)).remove)
        for batch in batches:
            run(model, batch)
    return means


def is_product(layer: Any) -> bool:
    """Whether every output is a product of the same inputs with a row of the weight, and those are not too many."""
    if not isinstance(layer, QuantLayer) or layer.weight[0].numel() > _MOST_INPUTS:
        return False
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and not isinstance(layer.padding, str) and layer.padding_mode == "zeros"
    return isinstance(layer, nn.Linear)

"""Calibration layer by layer: each is quantised for what the layers before it, quantised already, hand to it."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from psaq.models.calling import run
from psaq.models.copying import copied
from psaq.progress import progress_bar
from psaq.quantization.model.layers import QuantLayer, add_to_bias
from psaq.quantization.model.points import WEIGHT, Point, layer_of, points_in_scope, role, weight_points
from psaq.quantization.model.walk import Walk, blocks
from psaq.quantization.passes.distillation import distil
from psaq.quantization.passes.reconstruction import reconstruct
from psaq.quantization.passes.statistics import InputStatistics
from psaq.quantization.quantizers.activations import activation_quantizer, observer
from psaq.quantization.quantizers.weights import (
    group_of,
    quantised_points,
    refitted_weight,
    rounded_weight,
    weight_quantizer,
)
from psaq.quantization.recipes import Recipe

_MOST_INPUTS = 8192
"""Of a layer: the second moments of more would take gigabytes, and their factor hours."""

_ROUNDING = "rounding by second moments"
_ROUNDING_REASON = (
    f"grouped, transposed and padded convolutions and layers of more than {_MOST_INPUTS} inputs have none"
)


def calibrate_in_order(qmodel: nn.Module, batches: list[Tensor], recipe: Recipe, progress: bool) -> None:
    """Quantise every point of ``qmodel`` in the order in which a forward pass reaches it."""
    bits = quantised_points(qmodel, [*points_in_scope(qmodel, recipe.scope), *weight_points(qmodel)], recipe)
    calls = point_calls(qmodel, list(bits), batches[0])
    order, known = list(calls), blocks(qmodel, batches[0])
    calls |= {f"{layer_of(name)}.input": count for name, count in calls.items() if role(name) == WEIGHT}
    quantised, reference = (Walk(model, batches, known, calls) for model in (qmodel, copied(qmodel)))
    unfinished = list(known.names)
    for name in progress_bar(order, description="Calibrating", unit="point", enabled=progress):
        while unfinished and _is_behind(name, unfinished[0], order):
            _finish(unfinished.pop(0), quantised, reference, recipe)
        if role(name) == WEIGHT:
            _quantize_weight(quantised, reference, name, bits[name], recipe)
        else:
            _quantize_activation(quantised, name, bits[name], recipe)
    for block in unfinished:  # a model without a head ends with a block
        _finish(block, quantised, reference, recipe)
    if recipe.distillation_steps:
        distil(qmodel, reference.model, torch.cat(batches), recipe.distillation_steps, progress)


@torch.no_grad()
def point_calls(qmodel: nn.Module, names: list[str], images: Float[Tensor, "images 3 height width"]) -> dict[str, int]:
    """How often a forward pass reaches the points ``names``, in the order in which it first does; 0 where that depends
    on how many images there are."""
    for_one, for_two = (_passed(qmodel, names, images[:count]) for count in (1, 2))
    return {name: count if for_two.get(name) == count else 0 for name, count in for_one.items()}


def _passed(qmodel: nn.Module, names: list[str], images: Tensor) -> dict[str, int]:
    passed: dict[str, int] = {}
    for name in names:
        qmodel.set_submodule(name, _Milestone(name, passed))
    run(qmodel, images)
    for name in names:
        qmodel.set_submodule(name, Point())
    return passed


class _Milestone(nn.Module):
    def __init__(self, name: str, passed: dict[str, int]):
        super().__init__()
        self.name, self.passed = name, passed

    def forward(self, x: Tensor) -> Tensor:
        self.passed[self.name] = self.passed.get(self.name, 0) + 1
        return x


def _finish(block: str, quantised: Walk, reference: Walk, recipe: Recipe) -> None:
    reference.finish(block)
    if recipe.reconstruction_steps and quantised.blocks.calls_of(block) == 1:
        inputs, outputs = torch.cat(list(quantised.inputs(block))), torch.cat(reference.kept)
        reconstruct(quantised.model.get_submodule(block), inputs, outputs, recipe.reconstruction_steps, block)
    quantised.finish(block)


def _is_behind(name: str, block: str, order: list[str]) -> bool:
    """Whether no point of ``block`` is left from ``name`` on."""
    return not any(point.startswith(f"{block}.") for point in order[order.index(name) :])


def _quantize_activation(walk: Walk, name: str, bits: int, recipe: Recipe) -> None:
    walk.model.set_submodule(name, observer(walk.model, name, recipe))
    walk.pass_through(name)
    walk.model.set_submodule(name, activation_quantizer(walk.model, name, recipe, bits))


@torch.no_grad()
def _quantize_weight(quantised: Walk, reference: Walk, name: str, bits: int, recipe: Recipe) -> None:
    layer = quantised.model.get_submodule(layer_of(name))
    assert isinstance(layer, QuantLayer)
    rows = layer.rows(layer.weight)
    weight = rows.flatten(1).double()
    statistics = _input_statistics(quantised, reference, layer_of(name), recipe)
    group = group_of(layer, bits, recipe)
    if statistics is None:
        layer.weight_quantizer = weight_quantizer(rows, bits, recipe, group)
        return
    wanted = refitted_weight(weight, statistics, recipe.error_correction)
    quantizer = weight_quantizer(wanted, bits, recipe, group, statistics.second_moment.diagonal())
    rounded = rounded_weight(wanted, quantizer, statistics.second_moment, recipe)
    layer.weight_quantizer = quantizer
    layer.weight.copy_(layer.from_rows(rounded.view_as(rows)))
    if recipe.bias_compensation:
        # The layer's output gets the mean that it has in the reference.
        add_to_bias(layer, weight @ statistics.reference_mean - rounded @ statistics.mean)


def _input_statistics(quantised: Walk, reference: Walk, name: str, recipe: Recipe) -> InputStatistics | None:
    layer: Any = quantised.model.get_submodule(name)
    if not _is_product(layer) or layer.weight[0].numel() > _MOST_INPUTS:
        missing: Any = quantised.model.psaq_left_out
        missing[_ROUNDING] = _ROUNDING_REASON
        return None
    ours, theirs = (partial(_layer_rows, walk, name) for walk in (quantised, reference))
    statistics = InputStatistics(centred=recipe.bias_compensation)
    for noisy, clean in zip(ours(), theirs(), strict=True):
        if noisy.shape != clean.shape:
            # What a detector's second stage looks at is chosen by its first: the reference has looked elsewhere.
            return InputStatistics.of_one(ours(), centred=recipe.bias_compensation)
        statistics.add(noisy, clean)
    return statistics


def _layer_rows(walk: Walk, name: str) -> Iterator[Float[Tensor, "rows in"]]:
    """What each output of a layer is a product with, call by call, through the quantiser of its input."""
    layer: Any = walk.model.get_submodule(name)
    for x in walk.inputs(f"{name}.input"):
        yield _rows(layer, layer.get_submodule("input")(x))


def _is_product(layer: nn.Module) -> bool:
    """Whether every output is a product of the same inputs with a row of the weight."""
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and not isinstance(layer.padding, str) and layer.padding_mode == "zeros"
    return isinstance(layer, nn.Linear)


def _rows(layer: nn.Module, x: Tensor) -> Float[Tensor, "rows in"]:
    """What each output element is a product with."""
    if not isinstance(layer, nn.Conv2d):
        return x.flatten(0, -2)
    assert not isinstance(layer.padding, str)
    columns = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return columns.transpose(1, 2).flatten(0, 1)

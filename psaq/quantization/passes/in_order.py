"""Calibration layer by layer: each is quantised for what the layers before it, quantised already, hand to it."""

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from psaq.progress import progress_bar
from psaq.quantization.model.layers import QuantConv2d, QuantLinear, add_to_bias
from psaq.quantization.model.points import Point, all_points, layer_of, points_in_scope, weight_points
from psaq.quantization.model.walk import Walk, blocks
from psaq.quantization.passes.distillation import distil
from psaq.quantization.passes.reconstruction import reconstruct
from psaq.quantization.passes.statistics import InputStatistics
from psaq.quantization.quantizers.activations import activation_quantizer, observer
from psaq.quantization.quantizers.weights import bits_at, refitted_weight, rounded_weight, weight_quantizer
from psaq.quantization.recipes import Recipe


def calibrate_in_order(qmodel: nn.Module, batches: list[Tensor], recipe: Recipe, progress: bool) -> None:
    """Quantise every point of ``qmodel`` in the order in which a forward pass reaches it."""
    weights = weight_points(all_points(qmodel))
    order = execution_order(qmodel, [*points_in_scope(all_points(qmodel), recipe.scope), *weights], batches[0][:1])
    quantised, reference = Walk(qmodel, batches), Walk(copy.deepcopy(qmodel), batches)
    unfinished = blocks(qmodel)
    for name in progress_bar(order, description="Calibrating", unit="point", enabled=progress):
        while unfinished and _is_behind(name, unfinished[0], order):
            _finish(unfinished.pop(0), quantised, reference, recipe)
        if name in weights:
            _quantize_weight(quantised, reference, name, recipe)
        else:
            _quantize_activation(quantised, name, recipe)
    for block in unfinished:  # a model without a head ends with a block
        _finish(block, quantised, reference, recipe)
    if recipe.distillation_steps:
        distil(qmodel, reference.model, torch.cat(batches), recipe.distillation_steps, progress)


@torch.no_grad()
def execution_order(qmodel: nn.Module, names: list[str], images: Float[Tensor, "images 3 height width"]) -> list[str]:
    """The points ``names`` in the order in which a forward pass reaches them."""
    order: list[str] = []
    for name in names:
        qmodel.set_submodule(name, _Milestone(name, order))
    qmodel(images)
    for name in names:
        qmodel.set_submodule(name, Point())
    return order


class _Milestone(nn.Module):
    def __init__(self, name: str, passed: list[str]):
        super().__init__()
        self.name, self.passed = name, passed

    def forward(self, x: Tensor) -> Tensor:
        if self.name not in self.passed:
            self.passed.append(self.name)
        return x


def _finish(block: str, quantised: Walk, reference: Walk, recipe: Recipe) -> None:
    reference.finish(block)
    if recipe.reconstruction_steps:
        inputs, outputs = torch.cat(list(quantised.inputs(block))), torch.cat(reference.kept)
        reconstruct(quantised.model.get_submodule(block), inputs, outputs, recipe.reconstruction_steps)
    quantised.finish(block)


def _is_behind(name: str, block: str, order: list[str]) -> bool:
    """Whether no point of ``block`` is left from ``name`` on."""
    return not any(point.startswith(f"{block}.") for point in order[order.index(name) :])


def _quantize_activation(walk: Walk, name: str, recipe: Recipe) -> None:
    walk.model.set_submodule(name, observer(name, recipe))
    walk.pass_through(name)
    _, bits = bits_at(walk.model, name, recipe)
    walk.model.set_submodule(name, activation_quantizer(walk.model, name, recipe, bits))


@torch.no_grad()
def _quantize_weight(quantised: Walk, reference: Walk, name: str, recipe: Recipe) -> None:
    layer = quantised.model.get_submodule(layer_of(name))
    assert isinstance(layer, QuantLinear | QuantConv2d)
    weight, bits = layer.weight.flatten(1).double(), bits_at(quantised.model, name, recipe)[0]
    statistics = _input_statistics(quantised, reference, layer_of(name), recipe)
    if statistics is None:  # a grouped convolution: its channels share no matrix product
        layer.weight_quantizer = weight_quantizer(layer.weight, bits, recipe)
        return
    wanted = refitted_weight(weight, statistics, recipe.error_correction)
    quantizer = weight_quantizer(wanted, bits, recipe, statistics.second_moment.diagonal())
    rounded = rounded_weight(wanted, quantizer, statistics.second_moment, recipe)
    layer.weight_quantizer = quantizer
    layer.weight.copy_(rounded.view_as(layer.weight))
    if recipe.bias_compensation:
        # The layer's output gets the mean that it has in the reference.
        add_to_bias(layer, weight @ statistics.reference_mean - rounded @ statistics.mean)


def _input_statistics(quantised: Walk, reference: Walk, name: str, recipe: Recipe) -> InputStatistics | None:
    layer = quantised.model.get_submodule(name)
    if isinstance(layer, nn.Conv2d) and (layer.groups != 1 or isinstance(layer.padding, str)):
        return None
    statistics = InputStatistics(centred=recipe.bias_compensation)
    for x, clean in zip(quantised.inputs(name), reference.inputs(name), strict=True):
        statistics.add(_rows(layer, layer.get_submodule("input")(x)), _rows(layer, clean))
    return statistics


def _rows(layer: nn.Module, x: Tensor) -> Float[Tensor, "rows in"]:
    """What each output element is a product with."""
    if not isinstance(layer, nn.Conv2d):
        return x.flatten(0, -2)
    assert not isinstance(layer.padding, str)
    columns = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return columns.transpose(1, 2).flatten(0, 1)

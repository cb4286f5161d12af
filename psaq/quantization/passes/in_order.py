"""Calibration layer by layer: each is quantised for what the layers before it, quantised already, hand to it."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psaq.models.calling import run
from psaq.models.copying import copied
from psaq.progress import progress_bar
from psaq.quantization.model.layers import QuantLayer, add_to_bias
from psaq.quantization.model.points import WEIGHT, Point, layer_of, points_in_scope, role, some_of, weight_points
from psaq.quantization.model.walk import Walk, blocks
from psaq.quantization.passes.block_calls import block_calls, by_image
from psaq.quantization.passes.distillation import distil
from psaq.quantization.passes.im2col import Vectors, vectors_of
from psaq.quantization.passes.layer_inputs import ROUNDING, ROUNDING_REASON, input_means, is_product
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

UNREACHED = "points out of reach"
UNTRAINED = "reconstructed blocks"


def calibrate_in_order(qmodel: nn.Module, batches: list[Tensor], recipe: Recipe, progress: bool) -> None:
    """Quantise every point of ``qmodel`` in the order in which a forward pass reaches it."""
    bits = quantised_points(qmodel, [*points_in_scope(qmodel, recipe.scope), *weight_points(qmodel)], recipe)
    calls = point_calls(qmodel, list(bits), batches[0])
    if unreached := [name for name in bits if name not in calls]:
        missing: Any = qmodel.psaq_left_out
        missing[UNREACHED] = f"{some_of(unreached)}: nothing passes there, and they stay as they were"
    calibration = _InOrder(qmodel, batches, recipe, bits, calls)
    for name in progress_bar(list(calls), description="Calibrating", unit="point", enabled=progress):
        calibration.quantize(name)
    calibration.finish()
    if recipe.distillation_steps:
        assert calibration.reference is not None
        distil(qmodel, calibration.reference.model, torch.cat(batches), recipe.distillation_steps, progress)


class _InOrder:
    """Where calibration stands: what is finished of the quantised model and, where the recipe looks at more of it than
    means, of the model in full precision."""

    def __init__(
        self, qmodel: nn.Module, batches: list[Tensor], recipe: Recipe, bits: dict[str, int], calls: dict[str, int]
    ):
        self.model, self.recipe, self.bits = qmodel, recipe, bits
        self.place = {name: index for index, name in enumerate(calls)}
        layers = {layer_of(name): count for name, count in calls.items() if role(name) == WEIGHT}
        times = calls | layers | {f"{name}.input": count for name, count in layers.items()}
        known = blocks(qmodel, batches[0])
        self.unfinished = list(known.names)
        self.quantised = Walk(qmodel, batches, known, times)
        followed = recipe.error_correction or recipe.reconstruction_steps or recipe.distillation_steps
        self.reference = Walk(copied(qmodel), batches, known, times) if followed else None
        self.means = input_means(qmodel, batches, layers) if recipe.bias_compensation else {}
        self.seen: dict[str, list[Tensor]] = {}
        self.untrained: list[str] = []

    def quantize(self, name: str) -> None:
        """Quantise the point ``name``, which is the next."""
        while self.unfinished and self._is_behind(self.unfinished[0], name):
            self._finish(self.unfinished.pop(0))
        if role(name) == WEIGHT:
            self._quantize_weight(name)
        else:
            self._quantize_activation(name)
        layer = layer_of(name)
        if self._last(layer) == self.place[name] and isinstance(self.model.get_submodule(layer), QuantLayer):
            self.quantised.finish_layer(layer)

    def finish(self) -> None:
        """Finish the blocks that are left: a model without a head ends with one."""
        while self.unfinished:
            self._finish(self.unfinished.pop(0))
        if self.untrained:
            missing: Any = self.model.psaq_left_out
            missing[UNTRAINED] = (
                f"{some_of(self.untrained)}: they run several times in a pass, or with what is not known of each image"
            )

    def _is_behind(self, block: str, name: str) -> bool:
        """Whether a block runs before the point ``name``, and none of its own points is left. Of one without points
        it is known when the next begins."""
        last = self._last(block)
        if last is None:
            return any(name.startswith(f"{other}.") for other in self.unfinished[1:])
        return last < self.place[name]

    def _last(self, module: str) -> int | None:
        """The place of the last point in a module."""
        return max((place for name, place in self.place.items() if name.startswith(f"{module}.")), default=None)

    def _finish(self, block: str) -> None:
        if self.reference is not None:
            self.reference.finish(block)
        if self.recipe.reconstruction_steps:
            self._reconstruct(block)
        self.quantised.finish(block)

    def _reconstruct(self, block: str) -> None:
        if self.quantised.blocks.calls_of(block) != 1:
            self.untrained.append(block)
            return
        assert self.reference is not None
        inputs = block_calls(self.quantised, block)
        outputs = by_image(self.reference.kept, [len(batch) for batch in self.reference.batches])
        if inputs is None or outputs is None:
            self.untrained.append(block)
        else:
            reconstruct(self.model.get_submodule(block), inputs, outputs, self.recipe.reconstruction_steps, block)

    @torch.no_grad()
    def _quantize_activation(self, name: str) -> None:
        watching = observer(self.model, name, self.recipe)
        self.model.set_submodule(name, watching)
        inputs = self.quantised.inputs(name)
        if role(name) == "input" and self.quantised.calls[name] == 1:  # the layer's weight is next, and wants them, too
            self.seen = {name: list(inputs)}
            inputs = iter(self.seen[name])
        for x in inputs:
            watching(x)
        self.model.set_submodule(name, activation_quantizer(self.model, name, self.recipe, self.bits[name]))

    @torch.no_grad()
    def _quantize_weight(self, name: str) -> None:
        layer, recipe, bits = self.model.get_submodule(layer_of(name)), self.recipe, self.bits[name]
        assert isinstance(layer, QuantLayer)
        rows = layer.rows(layer.weight)
        group = group_of(layer, bits, recipe)
        if not is_product(layer):
            missing: Any = self.model.psaq_left_out
            missing[ROUNDING] = ROUNDING_REASON
            layer.weight_quantizer = weight_quantizer(rows, bits, recipe, group)
            return
        weight, statistics = rows.flatten(1).double(), self._input_statistics(layer_of(name))
        wanted = refitted_weight(weight, statistics, recipe.error_correction)
        quantizer = weight_quantizer(wanted, bits, recipe, group, statistics.second_moment.diagonal())
        rounded = rounded_weight(wanted, quantizer, statistics.second_moment, recipe)
        layer.weight_quantizer = quantizer
        layer.weight.copy_(layer.from_rows(rounded.view_as(rows)))
        if recipe.bias_compensation:
            # The layer's output gets the mean that it has in the reference.
            add_to_bias(layer, weight @ self._reference_mean(layer_of(name), statistics) - rounded @ statistics.mean)

    def _reference_mean(self, layer: str, statistics: InputStatistics) -> Float[Tensor, " in"]:
        """E[x]; where a detector's second stage looks at what its first chooses, which is something else in full
        precision, E[x̂]."""
        known = self.means[layer]
        return known.mean if known.counts == statistics.counts else statistics.mean

    def _input_statistics(self, layer: str) -> InputStatistics:
        statistics = InputStatistics(self.recipe.bias_compensation)
        if not self.recipe.error_correction:
            for noisy in self._vectors(self.quantised, layer):
                statistics.add(noisy)
            return statistics
        assert self.reference is not None
        for noisy, clean in zip(
            self._vectors(self.quantised, layer), self._vectors(self.reference, layer), strict=True
        ):
            if noisy.called_with != clean.called_with:
                return InputStatistics.of_one(self._vectors(self.quantised, layer), self.recipe.bias_compensation)
            statistics.add(noisy, clean)
        return statistics

    def _vectors(self, walk: Walk, name: str) -> Iterator[Vectors]:
        """A layer's, call by call, through the quantiser of its input."""
        layer: Any = walk.model.get_submodule(name)
        point = f"{name}.input"
        inputs = self.seen.pop(point, None) if walk is self.quantised else None
        for x in walk.inputs(point) if inputs is None else inputs:
            yield vectors_of(layer, layer.get_submodule("input")(x))


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

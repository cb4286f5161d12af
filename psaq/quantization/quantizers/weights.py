"""Which integers a weight becomes."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psaq.quantization.model.layers import QuantLayer, is_linear
from psaq.quantization.model.points import BARE_WEIGHT, WEIGHT, layer_of, role
from psaq.quantization.passes.gptq import round_weight
from psaq.quantization.passes.statistics import InputStatistics
from psaq.quantization.quantizers.activations import is_end
from psaq.quantization.quantizers.affine import AffineQuantizer, least_error_per_channel, symmetric_per_channel
from psaq.quantization.quantizers.bits import may_be_grouped
from psaq.quantization.quantizers.groups import in_groups
from psaq.quantization.recipes import Recipe


def weight_quantizer(
    weight: Float[Tensor, "out ..."],
    bits: int,
    recipe: Recipe,
    group: int | None,
    importance: Float[Tensor, " in"] | None = None,
) -> AffineQuantizer:
    """The scales that the recipe asks for, one per output channel or, with ``group``, one for so many of its inputs."""
    if group is not None:
        return in_groups(weight, group, lambda part, inputs: _per_channel(part, bits, recipe, importance, inputs))
    return _per_channel(weight, bits, recipe, importance, slice(None))


def _per_channel(
    weight: Float[Tensor, "out ..."], bits: int, recipe: Recipe, importance: Tensor | None, inputs: slice
) -> AffineQuantizer:
    if recipe.weight_scales == "max":
        return symmetric_per_channel(weight, bits)
    return least_error_per_channel(weight, bits, None if importance is None else importance[inputs])


def group_of(layer: nn.Module, bits: int, recipe: Recipe) -> int | None:
    """How many of the layer's inputs share a scale, where they are not all of them."""
    if recipe.group is None or not is_in_groups(layer, bits):
        return None
    assert isinstance(layer, QuantLayer)
    return recipe.group if layer.rows(layer.weight).shape[1] > recipe.group else None


def is_in_groups(layer: nn.Module, bits: int) -> bool:
    """Whether such a weight may be in groups: neither a convolution's nor one of more than 4 bits."""
    return is_linear(layer) and may_be_grouped(bits)


def refitted_weight(
    weight: Float[Tensor, "out in"], statistics: InputStatistics, strength: float
) -> Float[Tensor, "out in"]:
    """The weight that gives on x̂ what ``weight`` gives on x, by ridge regression (ERQ: Zhong et al. 2024).

    Minimises E‖W x − W* x̂‖² + λ‖W* − W‖² with λ = mean(diag H) / strength; a strength of 0 leaves the weight as it is.
    """
    if strength == 0:
        return weight
    moment = statistics.second_moment
    ridge = moment.diagonal().mean() / strength * torch.eye(len(moment)).to(moment)
    target = (statistics.cross_moment + ridge) @ weight.T
    return torch.linalg.solve(moment + ridge, target).T


def rounded_weight(
    weight: Float[Tensor, "out in"],
    quantizer: AffineQuantizer,
    second_moment: Float[Tensor, "in in"],
    recipe: Recipe,
) -> Float[Tensor, "out in"]:
    """The weight on the quantiser's grid."""
    if recipe.rounding == "gptq":
        return round_weight(weight, quantizer, second_moment, recipe.damping)
    return quantizer(weight.float()).double()


def bits_at(qmodel: nn.Module, point: str, recipe: Recipe) -> tuple[int | None, int | None]:
    """Bits of the weight and of the activation at a point, by the layer that it belongs to; None: left in float."""
    layer = layer_of(point)
    return recipe.bits(layer, is_end(qmodel, layer))


def quantised_points(qmodel: nn.Module, points: Iterable[str], recipe: Recipe) -> dict[str, int]:
    """Those of the points that the recipe does not leave in float, and their bits."""
    both = {point: bits_at(qmodel, point, recipe) for point in points}
    bits = {point: pair[0 if role(point) in (WEIGHT, BARE_WEIGHT) else 1] for point, pair in both.items()}
    return {point: wanted for point, wanted in bits.items() if wanted is not None}

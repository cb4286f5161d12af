"""Which integers a weight becomes."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psaq.quantization.model.points import BARE_WEIGHT, WEIGHT, layer_of, role
from psaq.quantization.passes.gptq import round_weight
from psaq.quantization.passes.statistics import InputStatistics
from psaq.quantization.quantizers.activations import is_end
from psaq.quantization.quantizers.affine import AffineQuantizer, least_error_per_channel, symmetric_per_channel
from psaq.quantization.recipes import Recipe


def weight_quantizer(
    weight: Float[Tensor, "out ..."], bits: int, recipe: Recipe, importance: Float[Tensor, " in"] | None = None
) -> AffineQuantizer:
    """The scales, one per output channel, that the recipe asks for."""
    if recipe.weight_scales == "max":
        return symmetric_per_channel(weight, bits)
    return least_error_per_channel(weight, bits, importance)


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

"""Rounding weights so that later ones make up for the error of earlier ones (GPTQ: Frantar et al. 2023)."""

import torch
from jaxtyping import Float
from torch import Tensor

from psaq.quantization.quantizers.affine import AffineQuantizer

_BLOCK = 64  # columns whose errors are spread together
_SMALLEST_DAMPING = 1e-8  # where none is asked for: fewer rows than inputs leave a singular H


def round_weight(
    weight: Float[Tensor, "out in"],
    quantizer: AffineQuantizer,
    second_moment: Float[Tensor, "in in"],
    damping: float,
) -> Float[Tensor, "out in"]:
    """The weight on ``quantizer``'s grid that changes the layer's output little, not the weight itself.

    Minimises tr((W − Ŵ) H (W − Ŵ)ᵀ) greedily: inputs in the order of falling H_ii (activation order), each column's
    error spread over the columns to come by the Cholesky factor of H⁻¹.

    Args:
        second_moment: H, the mean of x xᵀ over the layer's quantised inputs, less that of their mean where the bias
            takes care of it. Float64.
        damping: added to H's diagonal, as a part of its mean.
    """
    order = second_moment.diagonal().argsort(descending=True)
    upper = _inverse_factor(second_moment[order][:, order], damping)
    columns = weight.detach().to(upper)[:, order].clone()
    scales = quantizer.scales(len(order))[:, order]
    rounded = torch.empty_like(columns)
    for start in range(0, len(order), _BLOCK):
        block = slice(start, min(start + _BLOCK, len(order)))
        errors = _round_block(columns, rounded, block, quantizer, scales, upper)
        columns[:, block.stop :] -= errors @ upper[block, block.stop :]
    return rounded[:, order.argsort()].to(weight.dtype)


def _round_block(
    columns: Tensor,
    rounded: Tensor,
    block: slice,
    quantizer: AffineQuantizer,
    scales: Float[Tensor, "out in"],
    upper: Float[Tensor, "in in"],
) -> Float[Tensor, "out block"]:
    """Round the block's columns in place, one after the other; returns their errors in units of the factor."""
    errors = columns.new_empty(len(columns), block.stop - block.start)
    lowest, highest = quantizer.lowest, quantizer.highest
    for offset, column in enumerate(range(block.start, block.stop)):
        scale = scales[:, column]
        levels = columns[:, column].float().mul_(scale.reciprocal()).round_().clamp_(lowest, highest)
        rounded[:, column] = levels.mul_(scale)  # what the quantiser does, without its ceremony
        error = (columns[:, column] - rounded[:, column]) / upper[column, column]
        columns[:, column + 1 : block.stop] -= error[:, None] * upper[column, column + 1 : block.stop]
        errors[:, offset] = error
    return errors


def _inverse_factor(second_moment: Float[Tensor, "in in"], damping: float) -> Float[Tensor, "in in"]:
    """U, upper triangular, with UᵀU = (H + damping · mean(diag H) · 1)⁻¹."""
    added = max(damping, _SMALLEST_DAMPING) * second_moment.diagonal().mean()
    tiny = torch.finfo(torch.float32).tiny  # an input that is always zero
    identity = torch.eye(len(second_moment)).to(second_moment)
    # H = R Rᵀ with R upper triangular, which is the Cholesky factor seen from the other end; then U = R⁻¹.
    factor = torch.linalg.cholesky((second_moment + (added + tiny) * identity).flip(0, 1)).flip(0, 1)
    return torch.linalg.solve_triangular(factor, identity, upper=True)

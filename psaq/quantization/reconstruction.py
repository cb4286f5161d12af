"""Training a quantised block for a moment, so that it emits what the block did in full precision.

Block-wise reconstruction (BRECQ: Li et al. 2021), through the quantisers by straight-through gradients. Weights
move between levels, biases and LayerNorms make up for what is left; ranges stay as they were calibrated.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psaq.quantization.layers import QuantConv2d, QuantLinear

_IMAGES = 8  # per step
_WEIGHT_RATE = 0.02  # of a quantisation step
_FLOAT_RATE = 5e-3  # of a bias's or LayerNorm's root mean square


def reconstruct(
    block: nn.Module, inputs: Float[Tensor, "images ..."], outputs: Float[Tensor, "images ..."], steps: int
) -> None:
    """Train ``block``, quantised, to map ``inputs`` to ``outputs`` by the mean squared error; weights end on the grid.

    Args:
        inputs: what the quantised blocks before it emit.
        outputs: what the block emits in the full-precision model.
        steps: of Adam, the rate falling to zero.
    """
    trainable = {parameter: parameter.requires_grad for parameter in block.parameters()}
    optimizer = torch.optim.Adam(_parameter_groups(block))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draw = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        for _ in range(steps):
            chosen = torch.randperm(len(inputs), generator=draw)[:_IMAGES].to(inputs.device)
            loss = (block(inputs[chosen]) - outputs[chosen]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    _settle(block)
    for parameter, wanted in trainable.items():
        parameter.grad = None
        parameter.requires_grad_(wanted)


def _parameter_groups(block: nn.Module) -> list[dict[str, object]]:
    layers = [module for module in block.modules() if isinstance(module, QuantLinear | QuantConv2d)]
    weights = {layer.weight: float(layer.weight_quantizer.scale.mean()) for layer in layers}
    groups: list[dict[str, object]] = []
    for parameter in block.parameters():
        parameter.requires_grad_(True)
        size = float(parameter.detach().square().mean().sqrt())
        rate = weights[parameter] * _WEIGHT_RATE if parameter in weights else size * _FLOAT_RATE
        groups.append({"params": [parameter], "lr": rate})
    return groups


@torch.no_grad()
def _settle(block: nn.Module) -> None:
    """Put the weights on their grids."""
    for module in block.modules():
        if isinstance(module, QuantLinear | QuantConv2d):
            module.weight.copy_(module.weight_quantizer(module.weight))

"""Training a quantised block for a moment, so that it emits what the block did in full precision.

Block-wise reconstruction (BRECQ: Li et al. 2021), through the quantisers by straight-through gradients. Weights
move between levels, ranges adapt (LSQ: Esser et al. 2020), biases and LayerNorms make up for what is left.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psaq.quantization.passes.block_calls import BlockCalls
from psaq.quantization.passes.training import trained

_IMAGES = 8  # per step


def reconstruct(
    block: nn.Module,
    inputs: BlockCalls,
    outputs: Float[Tensor, "images rows ..."],
    steps: int,
    name: str = "a block",
) -> None:
    """Train ``block``, quantised, to map ``inputs`` to ``outputs`` by the mean squared error; weights end on the grid.

    Args:
        inputs: what it is called with where the blocks before it are quantised.
        outputs: what the block emits in the full-precision model.
        steps: of Adam, the rate falling to zero.
        name: the block's, for the error.

    Raises:
        PsaqError: the loss became NaN or infinite.
    """
    draw = torch.Generator().manual_seed(0)
    with trained(block, steps, name) as step:
        for _ in range(steps):
            chosen = torch.randperm(len(outputs), generator=draw)[:_IMAGES].to(outputs.device)
            places, names = inputs.of(chosen)
            step((block(*places, **names) - outputs[chosen].flatten(0, 1)).square().mean())

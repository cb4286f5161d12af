"""What the runtimes that an exported model is for multiply as integers."""

from dataclasses import dataclass

import torch

from psaq.choices import Runtime


@dataclass(frozen=True)
class Target:
    """What a runtime multiplies as integers."""

    int8_weights: bool
    """Without a zero point; else those of 8 bits are uint8 around 128."""
    convolutions: bool
    """Also in a convolution: a patch embedding stays one."""
    int8_activations: bool = False
    """Around 0, and of no other kind."""
    scores: torch.dtype | None = None
    """The type of queries and keys with 0 in the middle of their levels; None: they keep their own levels."""
    keeps_uneven_steps: bool = False
    """Of levels, by their formulas in float; else what they quantise is of even steps or not quantised at all."""
    widens_nibbles: bool = True
    """To bytes, as it loads the file."""
    groups_of_nibbles: bool = False
    """By an operator of its own."""
    matrices_in_groups: bool = False
    """Else they have an axis more: onnxruntime would make a product of them that rounds its input once more."""


TARGETS: dict[Runtime | None, Target] = {
    None: Target(int8_weights=False, convolutions=False, keeps_uneven_steps=True),
    "onnxruntime": Target(int8_weights=True, convolutions=False, scores=torch.uint8, groups_of_nibbles=True),
    "openvino": Target(int8_weights=True, convolutions=True, scores=torch.int8, matrices_in_groups=True),
    "tensorrt": Target(
        int8_weights=True, convolutions=True, int8_activations=True, widens_nibbles=False, matrices_in_groups=True
    ),
}

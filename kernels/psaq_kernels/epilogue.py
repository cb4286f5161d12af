"""What a linear layer does with its integer sums once they are scaled."""

from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor

from psaq_kernels.levels import PerTensor


@dataclass(frozen=True)
class Epilogue:
    """Add ``bias``, apply a GELU where ``gelu``, and emit ``dtype``: int8 levels of ``output`` where there is one."""

    bias: Float32[Tensor, "outputs"] | None
    gelu: bool
    output: PerTensor | None
    dtype: torch.dtype

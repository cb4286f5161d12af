"""Fused operations for data-free quantisation: tensors in, tensors out."""

from psaq_kernels.backends import BackendError
from psaq_kernels.density import similarity_density, similarity_range
from psaq_kernels.entropy import density_entropy
from psaq_kernels.layer_norm import layer_norm_quantize
from psaq_kernels.levels import PerTensor, PerToken
from psaq_kernels.linear import quant_linear
from psaq_kernels.packing import QuantizedWeight

__all__ = [
    "BackendError",
    "PerTensor",
    "PerToken",
    "QuantizedWeight",
    "density_entropy",
    "layer_norm_quantize",
    "quant_linear",
    "similarity_density",
    "similarity_range",
]

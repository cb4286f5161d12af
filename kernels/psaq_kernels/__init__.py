"""Fused operations for data-free quantisation: tensors in, tensors out."""

from psaq_kernels.backends import BackendError
from psaq_kernels.density import similarity_density, similarity_range
from psaq_kernels.entropy import density_entropy

__all__ = ["BackendError", "density_entropy", "similarity_density", "similarity_range"]

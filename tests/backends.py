"""The backends that tests on CPU tensors go through."""

import os

import pytest

from psaq_kernels.processor import BYTE, largest_exact_weight

interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1",
    reason="Triton's interpreter, which runs kernels on CPU tensors, is off where there is a GPU: tests/gpu runs them",
)
BACKENDS = ["torch", pytest.param("triton", marks=interpreted)]
EXACT_BITS = 8 if largest_exact_weight() == BYTE else 7
"""Of weights whose products with bytes oneDNN sums rightly on this processor."""

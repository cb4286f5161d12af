"""The backends that tests on CPU tensors go through."""

import os

import pytest

interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1",
    reason="Triton's interpreter, which runs kernels on CPU tensors, is off where there is a GPU: tests/gpu runs them",
)
BACKENDS = ["torch", pytest.param("triton", marks=interpreted)]

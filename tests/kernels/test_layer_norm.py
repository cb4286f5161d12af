"""LayerNorm to levels against float64."""

import math
from typing import Any

import pytest
import torch
from backends import BACKENDS

from psaq_kernels import PerTensor, layer_norm_quantize
from psaq_kernels.layer_norm import _layer_norm_quantize

GRID = PerTensor(0.031, 120)


def inputs(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator) * 3 + 5
    weight = torch.rand(shape[-1], generator=generator) + 0.5
    return x.to(dtype), weight, torch.randn(shape[-1], generator=generator)


def exact_level(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, grid: PerTensor, eps: float) -> torch.Tensor:
    """The level in float64, before it is rounded."""
    normalised = torch.nn.functional.layer_norm(x.double(), x.shape[-1:], weight.double(), bias.double(), eps)
    return (normalised / grid.scale + grid.zero_point).clamp(0, 2**grid.bits - 1) - 2 ** (grid.bits - 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 1), (3, 7, 48), (9, 192), (2, 1000)], ids=str)
@pytest.mark.parametrize("grid", [GRID, PerTensor(0.4, 9, bits=4)], ids=["8 bits", "4 bits"])
def test_levels_are_the_nearest(backend: str, dtype: torch.dtype, shape: tuple[int, ...], grid: PerTensor) -> None:
    x, weight, bias = inputs(*shape, dtype=dtype)
    levels = layer_norm_quantize(x, weight, bias, grid, 1e-6, backend=backend)
    assert levels.dtype == torch.int8
    assert levels.shape == x.shape
    distance = (levels.double() - exact_level(x, weight, bias, grid, 1e-6)).abs()
    # Half a level, and what float32's rounding of values up to some hundred levels may add.
    assert distance.max() <= 0.5 + 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_offsets_do_not_cancel(backend: str) -> None:
    x, weight, bias = inputs(4, 96)
    x += 1000
    levels = layer_norm_quantize(x, weight, bias, GRID, backend=backend)
    assert (levels.double() - exact_level(x, weight, bias, GRID, 1e-6)).abs().max() <= 0.52


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_rows_empty_input_and_constant_rows(backend: str) -> None:
    x, weight, bias = inputs(6, 40)
    wide = x.repeat(1, 2)[:, ::2]
    assert torch.equal(
        layer_norm_quantize(wide, weight, bias, GRID, backend=backend),
        layer_norm_quantize(wide.contiguous(), weight, bias, GRID, backend=backend),
    )
    assert layer_norm_quantize(x[:0], weight, bias, GRID, backend=backend).shape == (0, 40)
    constant = layer_norm_quantize(torch.full((1, 40), 3.0), weight, bias, GRID, backend=backend)
    only_bias = (bias / GRID.scale).round().clamp(-120, 135).int() + GRID.stored_zero
    assert torch.equal(constant[0].int(), only_bias)


def test_the_operator_is_registered_properly() -> None:
    x, weight, bias = inputs(5, 24)
    torch.library.opcheck(_layer_norm_quantize, (x, weight, bias, 1e-6, [8.0, 120.0, 0.031], "torch"))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"x": torch.zeros(2, 4, dtype=torch.int8)}, TypeError, "x must be float32"),
        ({"x": torch.zeros(2, 0)}, ValueError, "x must be .* at least one channel"),
        ({"weight": torch.ones(5)}, ValueError, r"weight must be \(4,\)"),
        ({"bias": torch.ones(4, dtype=torch.int32)}, TypeError, "bias must be floating-point"),
        ({"output": None}, TypeError, "output must be PerTensor"),
        ({"eps": 0.0}, ValueError, "eps must be positive"),
        ({"eps": math.nan}, ValueError, "eps must be positive"),
    ],
)
def test_an_error_names_the_argument(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    good = {"x": torch.zeros(2, 4), "weight": torch.ones(4), "bias": torch.zeros(4), "output": GRID}
    with pytest.raises(error, match=message):
        layer_norm_quantize(**{**good, **changed})

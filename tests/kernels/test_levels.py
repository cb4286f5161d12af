"""Activations to levels: rounding, saturation, and what has no level."""

import math

import numpy as np
import pytest
import torch
from backends import BACKENDS, interpreted
from hypothesis import given, settings
from hypothesis import strategies as st

from psaq_kernels import PerTensor, PerToken
from psaq_kernels.linear_torch import quantize_rows, to_levels

GRIDS = [PerTensor(0.02, 113), PerTensor(1.0, 0), PerTensor(0.3, 255), PerTensor(0.7, 3, bits=4), PerTensor(2e-5, 128)]


def levels(backend: str, x: torch.Tensor, grid: PerTensor) -> torch.Tensor:
    if backend == "torch":
        return to_levels(x, grid)
    triton_backend = pytest.importorskip("psaq_kernels.levels_triton")
    return triton_backend.quantize_rows(x, grid)[0]


def oracle(x: torch.Tensor, grid: PerTensor) -> torch.Tensor:
    """In numpy: the float32 product with the float32 inverse, rounded half to even, clamped, shifted to int8."""
    scaled = x.float().numpy() * (np.float32(1) / np.float32(grid.scale))
    level = np.clip(np.rint(scaled) + grid.zero_point, 0, 2**grid.bits - 1)
    return torch.from_numpy((level - 2 ** (grid.bits - 1)).astype(np.int8))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_levels_are_the_formula(backend: str, grid: PerTensor, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (torch.randn(7, 33) * 100 * grid.scale).to(dtype)
    assert torch.equal(levels(backend, x, grid), oracle(x, grid))


@pytest.mark.parametrize("backend", BACKENDS)
def test_halves_round_to_even(backend: str) -> None:
    x = torch.tensor([[-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5]])
    expected = torch.tensor([[-2, -2, 0, 0, 2, 2, 4]])
    # An odd zero point must not move the ties: rounding comes before the shift.
    assert torch.equal(levels(backend, x, PerTensor(1.0, 128)).int(), expected)
    assert torch.equal(levels(backend, x, PerTensor(1.0, 131)).int(), expected + 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_lies_outside_saturates_and_nan_is_level_zero(backend: str) -> None:
    x = torch.tensor([[math.inf, -math.inf, math.nan, 1e30, -1e30]])
    assert levels(backend, x, PerTensor(0.1, 100)).tolist() == [[127, -128, -128, 127, -128]]


def test_levels_equal_torch_fake_quantisation() -> None:
    torch.manual_seed(0)
    x, grid = torch.randn(100_000) * 3, PerTensor(0.0231, 117)
    simulated = torch.fake_quantize_per_tensor_affine(x, grid.scale, grid.zero_point, 0, 255)
    real = (to_levels(x, grid).float() - grid.stored_zero) * grid.scale
    torch.testing.assert_close(real, simulated, rtol=1e-6, atol=0)


@settings(deadline=None, max_examples=50)
@given(st.floats(1e-6, 1e6), st.integers(2, 8), st.data())
def test_levels_are_within_half_a_step_inside_the_range(scale: float, bits: int, data: st.DataObject) -> None:
    grid = PerTensor(scale, data.draw(st.integers(0, 2**bits - 1)), bits)
    lowest, highest = -grid.zero_point, 2**bits - 1 - grid.zero_point
    x = torch.linspace(lowest, highest, 257, dtype=torch.float64) * grid.scale
    real = (to_levels(x.float(), grid).double() - grid.stored_zero) * grid.scale
    assert ((real - x).abs() <= (0.5 + 1e-4) * grid.scale).all()


def rows(backend: str, x: torch.Tensor, input: PerToken) -> tuple[torch.Tensor, torch.Tensor]:
    if backend == "torch":
        quantized, scale = quantize_rows(x, input)
        return quantized, scale.flatten()
    triton_backend = pytest.importorskip("psaq_kernels.levels_triton")
    return triton_backend.quantize_rows(x, input)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bits", [8, 5])
def test_per_token_rows_span_their_own_range(backend: str, bits: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(9, 40) * torch.logspace(-6, 6, 9)[:, None]
    quantized, scale = rows(backend, x, PerToken(bits))
    highest = 2 ** (bits - 1) - 1
    assert (quantized.int().abs().amax(1) == highest).all()
    assert ((quantized * scale[:, None] - x).abs().amax(1) <= scale * 0.5001).all()
    assert torch.equal(scale, x.abs().amax(1) / torch.tensor(float(highest)))


@interpreted
def test_backends_agree_per_token() -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 70).bfloat16()  # few bits: many values fall between two levels
    for mine, theirs in zip(rows("torch", x, PerToken()), rows("triton", x, PerToken()), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_per_token_rows_of_zeros_infinities_and_nan(backend: str) -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, math.inf], [math.nan, 1.0], [1e-38, 0.0]])
    quantized, scale = rows(backend, x, PerToken())
    assert quantized[0].tolist() == quantized[3].tolist() == [0, 0]
    assert scale.isnan().tolist() == [False, True, True, False]
    assert (scale[[0, 3]] > 0).all()


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, 1e-45, 1e39])
def test_scale_must_be_positive_and_finite(scale: float) -> None:
    with pytest.raises(ValueError, match="scale must be positive"):
        PerTensor(scale)
    with pytest.raises(TypeError, match="scale must be a number, got 'wide'"):
        PerTensor("wide")  # type: ignore[arg-type]


@pytest.mark.parametrize("zero_point", [-1, 256, 3.0])
def test_zero_point_must_be_a_level(zero_point: int) -> None:
    with pytest.raises(ValueError, match="zero_point must be an integer from 0 to 255"):
        PerTensor(1.0, zero_point)


@pytest.mark.parametrize(("bits", "error"), [(1, ValueError), (9, ValueError), (4.0, TypeError)])
def test_bits_must_be_2_to_8(bits: int, error: type[Exception]) -> None:
    for make in (lambda: PerTensor(1.0, 0, bits), lambda: PerToken(bits)):
        with pytest.raises(error, match="bits must be"):
            make()

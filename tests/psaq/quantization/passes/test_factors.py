"""Sums over a convolution's windows, which are never laid out, against those of windows that are."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from psaq.quantization.passes.factors import Rows, Windows, factors_of

SMALL = st.integers(1, 3)


@st.composite
def calls(draw) -> tuple[nn.Conv2d, torch.Tensor, torch.Tensor]:
    """A convolution of stride 1, and two inputs in which its kernel has room."""
    kernel, step = (draw(st.tuples(SMALL, SMALL)) for _ in range(2))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    far = [space * (size - 1) + 1 for size, space in zip(kernel, step, strict=True)]
    size = [max(1, reach - 2 * pad) + draw(st.integers(0, 4)) for reach, pad in zip(far, padding, strict=True)]
    noise = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    x, y = torch.randn(2, 2, 3, *size, generator=noise).unbind()
    return nn.Conv2d(3, 1, kernel, padding=padding, dilation=step), x, y


def laid_out(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    columns = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return columns.transpose(1, 2).flatten(0, 1).double()


@given(calls())
@settings(max_examples=60, deadline=None)
def test_windows_have_the_sums_of_windows_that_are_laid_out(call):
    layer, x, y = call
    (found, other), (rows, others) = [Windows(layer, x), Windows(layer, y)], [laid_out(layer, x), laid_out(layer, y)]
    assert len(found) == len(rows)
    # Float64 sums of some hundred products of about 1, in another order.
    torch.testing.assert_close(found.sum(), rows.sum(0), rtol=0, atol=1e-11)
    torch.testing.assert_close(found.products(found), rows.T @ rows, rtol=0, atol=1e-11)
    torch.testing.assert_close(found.products(other), rows.T @ others, rtol=0, atol=1e-11)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
def test_factors_are_what_the_output_is_a_product_of(stride, kernel):
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 4, kernel, stride, padding=1, bias=False), torch.randn(2, 3, 6, 7)
    weight, factors = layer.weight.detach().flatten(1).double(), factors_of(layer, x)
    y = layer(x).detach().transpose(0, 1).flatten(1).double()
    assert len(factors) == y.shape[1]
    torch.testing.assert_close(weight @ factors.sum(), y.sum(1), rtol=0, atol=1e-4)  # y is float32
    torch.testing.assert_close(weight @ factors.products(factors) @ weight.T, y @ y.T, rtol=1e-5, atol=1e-4)


def test_a_linear_layer_has_a_row_for_each_token():
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    factors, rows = factors_of(nn.Linear(3, 4), x), x.flatten(0, 1).double()
    assert isinstance(factors, Rows)
    assert len(factors) == 10
    torch.testing.assert_close(factors.products(factors), rows.T @ rows)

"""Sums over a convolution's windows, which are never laid out, against those of windows that are."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from psaq.quantization.passes.im2col import Rows, Windows, vectors_of

SIZES = st.integers(1, 3)


@st.composite
def calls(draw) -> tuple[nn.Conv2d, torch.Tensor, torch.Tensor]:
    """A convolution of stride 1, and two inputs in which its kernel has room."""
    kernel, step = (draw(st.tuples(SIZES, SIZES)) for _ in range(2))
    padding = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    far = [space * (size - 1) + 1 for size, space in zip(kernel, step, strict=True)]
    size = [max(1, reach - 2 * pad) + draw(st.integers(0, 4)) for reach, pad in zip(far, padding, strict=True)]
    noise = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    x, y = torch.randn(2, 2, 3, *size, generator=noise).unbind()
    return nn.Conv2d(3, 1, kernel, padding=padding, dilation=step), x, y


def laid_out(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    columns = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return columns.transpose(1, 2).flatten(0, 1).double()


@given(calls())
@settings(max_examples=100, deadline=None)
def test_windows_have_the_sums_of_windows_that_are_laid_out(call):
    layer, x, y = call
    (found, other), (rows, others) = [Windows(layer, x), Windows(layer, y)], [laid_out(layer, x), laid_out(layer, y)]
    assert len(found) == len(rows)
    # Float64 sums of some hundred products of about 1, in another order.
    torch.testing.assert_close(found.sum(), rows.sum(0), rtol=0, atol=1e-11)
    torch.testing.assert_close(found.outer_sum(found), rows.T @ rows, rtol=0, atol=1e-11)
    torch.testing.assert_close(found.outer_sum(other), rows.T @ others, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_windows_need_neither_float32_nor_contiguous_memory(dtype):
    x = torch.randn(2, 6, 7, 3, generator=torch.Generator().manual_seed(0)).to(dtype).permute(0, 3, 1, 2)
    layer = nn.Conv2d(3, 1, 3, padding=1)
    found, rows = Windows(layer, x), laid_out(layer, x)
    torch.testing.assert_close(found.outer_sum(found), rows.T @ rows, rtol=0, atol=1e-11)


CONVOLUTIONS = {
    "3 × 3": ({"kernel_size": 3, "padding": 1}, Windows),
    "dilated": ({"kernel_size": 3, "padding": 2, "dilation": 2}, Windows),
    "1 × 1": ({"kernel_size": 1}, Rows),
    "strided": ({"kernel_size": 3, "stride": 2, "padding": 1}, Rows),
    "as large as the image": ({"kernel_size": 11}, Rows),
    "far apart, in zeros": ({"kernel_size": 3, "padding": 9, "dilation": 9}, Rows),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("batched", [True, False], ids=["batch", "one image"])
def test_vectors_are_what_the_output_is_a_product_of(name, batched):
    torch.manual_seed(0)
    options, kind = CONVOLUTIONS[name]
    layer, x = nn.Conv2d(3, 4, bias=False, **options), torch.randn(2, 3, 11, 12)
    x = x if batched else x[0]
    weight, vectors = layer.weight.detach().flatten(1).double(), vectors_of(layer, x)
    assert isinstance(vectors, kind)
    y = layer(x).detach().reshape(-1, *layer(x).shape[-3:]).transpose(0, 1).flatten(1).double()
    assert len(vectors) == y.shape[1]
    torch.testing.assert_close(weight @ vectors.sum(), y.sum(1), rtol=0, atol=1e-4)  # y is float32
    torch.testing.assert_close(weight @ vectors.outer_sum(vectors) @ weight.T, y @ y.T, rtol=1e-5, atol=1e-4)


def test_settings_of_a_convolution_may_be_single_numbers():
    layer, x = nn.Conv2d(3, 4, 3), torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    layer.padding, layer.dilation, layer.stride = 2, 2, 1
    found, rows = vectors_of(layer, x), laid_out(layer, x)
    torch.testing.assert_close(found.outer_sum(found), rows.T @ rows, rtol=0, atol=1e-11)


@pytest.mark.parametrize("stride", [1, 2])
def test_calls_with_images_of_other_sizes_do_not_belong_together(stride):
    layer, wide, high = nn.Conv2d(3, 1, 3, stride, 1), torch.zeros(1, 3, 8, 12), torch.zeros(1, 3, 12, 8)
    assert len(vectors_of(layer, wide)) == len(vectors_of(layer, high))
    assert vectors_of(layer, wide).called_with != vectors_of(layer, high).called_with
    assert vectors_of(layer, wide).called_with == vectors_of(layer, wide + 1).called_with


def test_a_linear_layer_has_a_vector_for_each_token():
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    vectors, others = vectors_of(nn.Linear(3, 4), x), vectors_of(nn.Linear(3, 4), x.square())
    wide = x.double()
    assert len(vectors) == 10
    torch.testing.assert_close(vectors.sum(), wide.sum((0, 1)))
    torch.testing.assert_close(vectors.outer_sum(vectors), torch.einsum("bti,btj->ij", wide, wide))
    # squares were rounded to float32
    torch.testing.assert_close(
        vectors.outer_sum(others), torch.einsum("bti,btj->ij", wide, wide.square()), rtol=1e-6, atol=1e-6
    )

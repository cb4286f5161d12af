"""The error from running sums is the one of quantising value by value."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psaq.quantization.quantizers.affine import AffineQuantizer, asymmetric_per_tensor
from psaq.quantization.quantizers.sorted_sample import SortedSample
from psaq.quantization.quantizers.uneven import SplitQuantizer, split_quantizer

Sample = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def value_by_value(quantizer: AffineQuantizer | SplitQuantizer, sample: Sample) -> float:
    """Each row as often as its share says."""
    rows, shares, importance = sample
    all_rows = rows.repeat_interleave(shares.int(), 0)
    squares = (quantizer(all_rows).double() - all_rows.double()).square()
    return float(squares.mean() if importance is None else (squares * importance).sum(1).mean())


def sampled(seed: int, spread: float, importance: bool) -> Sample:
    draw = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.gelu(spread * torch.randn(40, 7, generator=draw))
    shares = torch.randint(1, 5, (40,), generator=draw).float()
    return rows, shares, torch.rand(7, generator=draw).double() if importance else None


# Errors are sums of squares with float32's relative error of 1e-7 in each level; 8 bits leave 1e-5 of the squares.
CLOSE = {"rel": 1e-3, "abs": 1e-12}


@settings(deadline=None)
@given(
    bits=st.integers(2, 8),
    seed=st.integers(0, 2**31),
    spread=st.floats(1e-3, 1e3),
    ends=st.tuples(st.floats(0.1, 1.2), st.floats(0.1, 1.2)),
    importance=st.booleans(),
    include_zero=st.booleans(),
)
def test_of_even_levels(bits, seed, spread, ends, importance, include_zero):
    sample = sampled(seed, spread, importance)
    quantizer = asymmetric_per_tensor(sample[0].min() * ends[0], sample[0].max() * ends[1], bits, include_zero)
    expected = value_by_value(quantizer, sample)
    assert SortedSample(*sample).error(quantizer) == pytest.approx(expected, **CLOSE)


@settings(deadline=None)
@given(
    bits=st.integers(2, 8),
    seed=st.integers(0, 2**31),
    spread=st.floats(1e-1, 1e3),
    ends=st.tuples(st.floats(0.1, 1.2), st.floats(0.1, 1.2)),
    curve=st.sampled_from([1, 2]),
    share=st.sampled_from([1 / 16, 1 / 4, 1 / 2]),
    importance=st.booleans(),
)
def test_of_split_levels(bits, seed, spread, ends, curve, share, importance):
    sample = sampled(seed, spread, importance)
    quantizer = split_quantizer(sample[0].min() * ends[0], sample[0].max() * ends[1], bits, curve, share)
    expected = value_by_value(quantizer, sample)
    assert SortedSample(*sample).error(quantizer) == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize("value", [0.0, -2.5, 1e-30])
def test_of_one_value(value):
    sample = torch.full((3, 2), value), torch.ones(3), None
    quantizer = asymmetric_per_tensor(torch.tensor(value), torch.tensor(value), 4)
    assert SortedSample(*sample).error(quantizer) == pytest.approx(value_by_value(quantizer, sample), **CLOSE)


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_grid_has_a_level_for_every_integer_and_edges_half_way(bits):
    even = asymmetric_per_tensor(torch.tensor(-0.7), torch.tensor(2.0), bits)
    split = split_quantizer(torch.tensor(-0.17), torch.tensor(3.0), bits, curve=2)
    for quantizer in (even, split):
        levels, edges = quantizer.grid()
        assert len(levels) == len(edges) + 1 == 2**bits
        assert (levels.diff() > 0).all()
        torch.testing.assert_close(quantizer(levels), levels)
        nudge = 0.01 * levels.diff()
        torch.testing.assert_close(quantizer(edges - nudge), levels[:-1])
        torch.testing.assert_close(quantizer(edges + nudge), levels[1:])

"""Logarithmic and split quantisers: their formulas in float64, ends, zeros, gradients and types."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psaq.errors import PsaqError
from psaq.quantization.quantizers.affine import asymmetric_per_tensor
from psaq.quantization.quantizers.uneven import LogQuantizer, SplitQuantizer, log_quantizer, split_quantizer

BITS = st.integers(2, 8)
SEEDS = st.integers(0, 2**31)


def each_once(sample: torch.Tensor) -> torch.Tensor:
    """Every row stands for itself."""
    return sample.new_ones(len(sample))


def number(value: float) -> torch.Tensor:
    return torch.tensor(value)


def probabilities(seed: int, rows: int = 40, columns: int = 50) -> torch.Tensor:
    return (4 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))).softmax(-1)


def quantizers(bits: int) -> list[LogQuantizer | SplitQuantizer]:
    return [LogQuantizer(number(0.9), number(2.5), bits), split_quantizer(number(-0.17), number(6.0), bits, curve=2)]


def log_oracle(p: np.ndarray, top: float, per_octave: float, bits: int) -> np.ndarray:
    last = 2**bits - 1
    with np.errstate(divide="ignore"):
        levels = np.clip(np.round(-per_octave * np.log2(p / top)), 0, last)
    return np.where(levels == last, 0, top * 2 ** (-levels / per_octave))


def split_oracle(x: np.ndarray, quantizer: SplitQuantizer) -> np.ndarray:
    step, top = quantizer.negative_step.double().item(), quantizer.top.double().item()
    negative, curve = quantizer.negative_levels, quantizer.curve
    positive = 2**quantizer.bits - 1 - negative
    below = np.clip(np.round(x / step), -negative, 0) * step
    levels = np.round(np.clip(x / top, 0, 1) ** (1 / curve) * positive)
    return np.where(x < 0, below, (levels / positive) ** curve * top)


@settings(deadline=None, max_examples=50)
@given(bits=BITS, seed=SEEDS, top=st.floats(0.05, 1), per_octave=st.floats(0.2, 80))
def test_log_levels_follow_their_formula(bits, seed, top, per_octave):
    p = probabilities(seed)
    quantizer = LogQuantizer(number(top), number(per_octave), bits)
    expected = log_oracle(
        p.double().numpy(), quantizer.top.double().item(), quantizer.levels_per_octave.double().item(), bits
    )
    near = np.isclose(quantizer(p).double().numpy(), expected, rtol=1e-4, atol=1e-12)
    assert near.mean() > 0.99, "only an exact tie may round the other way"
    assert len(quantizer.levels(p).unique()) <= 2**bits
    assert torch.equal(quantizer.real(quantizer.levels(p)), quantizer(p))


@settings(deadline=None, max_examples=50)
@given(
    bits=BITS,
    seed=SEEDS,
    low=st.floats(-3, -1e-3),
    high=st.floats(1e-3, 50),
    curve=st.sampled_from([1, 2]),
    share=st.floats(0, 0.5),
)
def test_split_levels_follow_their_formula(bits, seed, low, high, curve, share):
    x = torch.empty(500).uniform_(1.2 * low, 1.2 * high, generator=torch.Generator().manual_seed(seed))
    quantizer = split_quantizer(number(low), number(high), bits, curve, share)
    assert quantizer.lowest.item() == pytest.approx(low, rel=1e-6)
    assert 1 <= quantizer.negative_levels == max(1, round(share * 2**bits))
    expected = split_oracle(x.double().numpy(), quantizer)
    near = np.isclose(quantizer(x).double().numpy(), expected, rtol=1e-4, atol=1e-12)
    assert near.mean() > 0.99
    assert len(quantizer(x).unique()) <= 2**bits


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_ends_and_zero(bits):
    log, split = quantizers(bits)
    assert log(torch.tensor([0.0, 1e-30, 0.9, 1.0])).tolist() == pytest.approx([0, 0, 0.9, 0.9])
    ends = split(torch.tensor([-9.0, -0.17, 0.0, 6.0, 99.0]))
    assert ends.tolist() == pytest.approx([-0.17, -0.17, 0, 6, 6])
    assert ends[2] == 0


@settings(deadline=None, max_examples=30)
@given(bits=BITS, seed=SEEDS)
def test_quantising_again_changes_nothing(bits, seed):
    log = log_quantizer(probabilities(seed), each_once(probabilities(seed)), probabilities(seed).max(), bits)
    once = log(probabilities(seed))
    torch.testing.assert_close(log(once), once, rtol=1e-6, atol=0)
    x = torch.nn.functional.gelu(torch.randn(300, generator=torch.Generator().manual_seed(seed)))
    for curve in (1, 2):
        split = split_quantizer(x.min(), x.max(), bits, curve)
        torch.testing.assert_close(split(split(x)), split(x), rtol=1e-6, atol=0)


@pytest.mark.parametrize("index", [0, 1])
def test_gradients_pass_straight_through_and_change_no_bit(index):
    quantizer = quantizers(4)[index]
    x = probabilities(1)[:5].requires_grad_()
    y = quantizer(x)
    assert torch.equal(y.detach(), quantizer(x.detach()))
    y.backward(torch.full_like(y, 3.0))
    assert torch.equal(x.grad, torch.full_like(x, 3.0))


def test_scales_learn_where_values_lie():
    """Both scales' gradients are those of the loss where nothing is rounded but clipped, or lies on a level."""
    split = quantizers(4)[1]
    for tensor in split.trainable():
        tensor.requires_grad_()
    split(torch.tensor([-9.0, 99.0, 6.0, 0.0])).backward(torch.tensor([1.0, 10.0, 100.0, 1000.0]))
    assert split.negative_step.grad.item() == pytest.approx(-4), "lowest = -4 steps"
    assert split.top.grad.item() == pytest.approx(10), "99 is clipped to the top; 6 and 0 stay whatever the top"


def test_nothing_learns_outside_of_the_range():
    x = torch.tensor([-9.0, -0.1, 3.0, 99.0], requires_grad=True)
    quantizers(4)[1](x).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("index", [0, 1])
def test_half_precision_keeps_scales_in_float32(index, dtype):
    quantizer = quantizers(8)[index].to(dtype)
    assert {buffer.dtype for buffer in quantizer.buffers() if buffer.is_floating_point()} == {torch.float32}
    x = probabilities(2).to(dtype)
    assert quantizer(x).dtype == dtype
    assert torch.equal(quantizer(x), quantizer(x.float()).to(dtype))


@pytest.mark.parametrize("index", [0, 1])
def test_nan_stays_nan(index):
    assert quantizers(4)[index](torch.tensor([torch.nan, 0.1])).isnan().tolist() == [True, False]


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_the_base_adapts_to_what_is_seen(bits):
    sharp, flat = probabilities(3), (probabilities(3) + 0.1) / 6
    assert log_quantizer(sharp, each_once(sharp), sharp.max(), bits).top == sharp.max()
    wide, narrow = (log_quantizer(p, each_once(p), p.max(), bits).levels_per_octave for p in (sharp, flat))
    assert 2**bits / 24 < wide < narrow < 2**bits / 2


@pytest.mark.parametrize("bits", [3, 4])
def test_they_lose_less_than_even_steps_on_what_they_are_for(bits):
    p = (1.5 * torch.randn(200, 100, generator=torch.Generator().manual_seed(4))).softmax(-1)
    even = asymmetric_per_tensor(p.min(), p.max(), bits)
    assert (log_quantizer(p, each_once(p), p.max(), bits)(p) - p).square().mean() < 0.5 * (even(p) - p).square().mean()
    x = torch.nn.functional.gelu(torch.randn(5000, generator=torch.Generator().manual_seed(0)))
    x = torch.cat([x, torch.tensor([8.0])])  # one channel far out, as GELUs have
    negative = x[x < 0]
    uniform, split = asymmetric_per_tensor(x.min(), x.max(), bits), split_quantizer(x.min(), x.max(), bits, curve=2)
    assert (split(negative) - negative).square().mean() < 0.5 * (uniform(negative) - negative).square().mean()


def test_nothing_but_zeros_has_quantisers():
    zeros = torch.zeros(4, 4)
    assert log_quantizer(zeros, each_once(zeros), zeros.max(), 4)(zeros).eq(0).all()
    assert split_quantizer(number(0.0), number(0.0), 4, curve=2)(zeros).eq(0).all()


def test_bits_out_of_range_are_refused():
    with pytest.raises(PsaqError, match="2 to 8"):
        LogQuantizer(number(1.0), number(1.0), 9)
    with pytest.raises(PsaqError, match="2 to 8"):
        split_quantizer(number(-1.0), number(1.0), 1, curve=1)


def test_they_show_what_they_do():
    log, split = quantizers(4)
    assert "log4, levels_per_octave=2.5, top=0.9" in repr(log)
    assert "split4, 4 steps of 0.0425 below zero, squares up to 6" in repr(split)


@pytest.mark.parametrize("curve", [1, 2])
def test_ranges_learn_from_numbers_in_bfloat16_as_from_the_same_in_float32(curve):
    """At 8 bits x̂ − x is about as small as what a product in bfloat16 is rounded by."""
    draw = torch.Generator().manual_seed(0)
    x, gradient = torch.randn(2, 500, generator=draw).bfloat16()
    slopes = []
    for kind in (torch.bfloat16, torch.float32):
        quantizer = split_quantizer(number(-0.17), number(4.0), 8, curve)
        for parameter in quantizer.trainable():
            parameter.requires_grad_()
        given = x.to(kind).clone().requires_grad_()
        quantizer(given).backward(gradient.to(kind))
        assert given.grad.dtype == kind
        slopes.append(torch.stack([parameter.grad for parameter in quantizer.trainable()]))
    torch.testing.assert_close(*slopes, rtol=1e-6, atol=0)  # the same sums of the same numbers

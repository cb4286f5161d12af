"""The uniform quantiser against its formulas in float64, and its invariants."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psaq.errors import PsaqError
from psaq.quantization.quantizers.affine import (
    AffineQuantizer,
    asymmetric_per_tensor,
    integer_range,
    symmetric_per_channel,
)

BITS = st.integers(2, 8)
SEEDS = st.integers(0, 2**31)
MAGNITUDES = st.floats(1e-6, 1e6)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def oracle(x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, lowest: int, highest: int) -> np.ndarray:
    """The definition, in float64: numpy rounds half to even too."""
    return scale * (np.clip(np.round(x / scale) + zero_point, lowest, highest) - zero_point)


@settings(deadline=None, max_examples=50)
@given(bits=BITS, seed=SEEDS, magnitude=MAGNITUDES, shift=st.floats(-2, 2))
def test_activations_follow_the_papers_formulas(bits, seed, magnitude, shift):
    x = (normal(seed, 7, 11) + shift) * magnitude
    low, high = x.min(), x.max()
    quantizer = asymmetric_per_tensor(low, high, bits, include_zero=False)
    scale = (high.double() - low.double()) / (2**bits - 1)
    zero_point = torch.clamp(-torch.round(low.double() / scale), 0, 2**bits - 1)
    assert quantizer.scale.item() == pytest.approx(scale.item(), rel=1e-6)
    assert abs(quantizer.zero_point.item() - zero_point.item()) <= 1
    expected = oracle(
        x.double().numpy(),
        quantizer.scale.double().numpy(),
        quantizer.zero_point.double().numpy(),
        0,
        2**bits - 1,
    )
    off = np.abs(quantizer(x).double().numpy() - expected) / quantizer.scale.item()
    assert ((off < 1e-3) | (np.abs(off - 1) < 1e-3)).all(), "only an exact tie may round the other way"
    assert (off < 1e-3).mean() > 0.97


@settings(deadline=None, max_examples=50)
@given(bits=BITS, seed=SEEDS, magnitude=MAGNITUDES)
def test_weights_follow_the_papers_formulas(bits, seed, magnitude):
    weight = normal(seed, 5, 3, 4) * magnitude
    quantizer = symmetric_per_channel(weight, bits)
    lowest, highest = integer_range(bits, signed=True)
    assert (lowest, highest) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    scale = weight.double().abs().amax((1, 2)) / ((highest - lowest) / 2)
    torch.testing.assert_close(quantizer.scale.double(), scale, rtol=1e-6, atol=0)
    assert quantizer.zero_point.eq(0).all()
    expected = oracle(weight.double().numpy(), scale.view(5, 1, 1).numpy(), np.zeros(1), lowest, highest)
    off = np.abs(quantizer(weight).double().numpy() - expected) / scale.view(5, 1, 1).numpy()
    # The largest weight sits at half a level above the top (127.5 at 8 bits), so where it is negative it is a tie.
    assert ((off < 1e-3) | (np.abs(off - 1) < 1e-3)).all()


def test_scales_at_eight_and_four_bits():
    weight = torch.tensor([[3.0, -1.0]])
    assert symmetric_per_channel(weight, 8).scale.item() == pytest.approx(3 / 127.5)
    assert symmetric_per_channel(weight, 4).scale.item() == pytest.approx(3 / 7.5)


@settings(deadline=None, max_examples=50)
@given(bits=BITS, seed=SEEDS, shift=st.floats(-5, 5))
def test_error_inside_the_range_is_half_a_step(bits, seed, shift):
    x = normal(seed, 200) + shift
    quantizer = asymmetric_per_tensor(x.min(), x.max(), bits)
    # Rounding the zero point moves the ends of the range by up to half a step more.
    assert (quantizer(x) - x).abs().max() <= quantizer.scale * 1.0001
    inner = x[(x > x.min() + quantizer.scale) & (x < x.max() - quantizer.scale)]
    if len(inner):
        assert (quantizer(inner) - inner).abs().max() <= quantizer.scale * 0.5001
    assert quantizer(torch.zeros(1)).item() == 0


@settings(deadline=None, max_examples=50)
@given(bits=BITS, seed=SEEDS, shift=st.floats(-5, 5))
def test_quantising_again_changes_no_bit(bits, seed, shift):
    x = normal(seed, 6, 10) + shift
    for quantizer in (asymmetric_per_tensor(x.min(), x.max(), bits), symmetric_per_channel(x, bits)):
        once = quantizer(x)
        assert torch.equal(quantizer(once), once)
        assert len(once.unique()) <= 60
        integers = quantizer.integers(x)
        assert integers.min() >= quantizer.lowest
        assert integers.max() <= quantizer.highest
        assert torch.equal(quantizer.real(integers), once)


def test_without_zero_the_authors_range_loses_its_top():
    low, high = torch.tensor(10.0), torch.tensor(14.0)
    faithful = asymmetric_per_tensor(low, high, 8, include_zero=False)
    sound = asymmetric_per_tensor(low, high, 8)
    assert faithful.zero_point == 0
    assert faithful(high).item() == pytest.approx(4)
    assert sound(high).item() == pytest.approx(14)
    assert sound(low).item() == pytest.approx(10, abs=sound.scale.item())


@pytest.mark.parametrize("include_zero", [True, False])
@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-45, 1e30])
def test_a_constant_has_a_quantiser(value, include_zero):
    x = torch.full((4,), value)
    quantizer = asymmetric_per_tensor(x.min(), x.max(), 8, include_zero)
    assert quantizer.scale > 0
    torch.testing.assert_close(quantizer(x), x, rtol=1e-5, atol=1e-30)


def test_a_channel_of_zeros_stays_zero():
    weight = torch.stack([torch.zeros(4), torch.ones(4)])
    quantizer = symmetric_per_channel(weight, 4)
    assert quantizer.scale.tolist()[0] == 1
    assert quantizer(weight)[0].eq(0).all()
    assert quantizer(weight).isfinite().all()


def test_gradients_pass_straight_through_inside_the_range():
    x = torch.tensor([-3.0, -0.4, 0.0, 0.4, 3.0], requires_grad=True)
    quantizer = asymmetric_per_tensor(torch.tensor(-1.0), torch.tensor(1.0), 8)
    quantizer(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_steps_are_whole_numbers_whose_gradient_is_one_over_the_scale():
    x = torch.tensor([-3.0, -0.4, 0.0, 0.4, 3.0], requires_grad=True)
    quantizer = asymmetric_per_tensor(torch.tensor(-1.0), torch.tensor(1.0), 8)
    steps = quantizer.steps(x)
    assert torch.equal(steps, steps.round())
    assert torch.equal(steps * quantizer.scale, quantizer(x))
    steps.sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([0, 1.0, 1, 1, 0]) / quantizer.scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_it_computes_what_torchs_fake_quantisation_computes(dtype):
    x = (3 * normal(1, 50, 40) + 1).to(dtype)
    activations, weights = asymmetric_per_tensor(x.min() / 2, x.max() / 2, 5), symmetric_per_channel(x, 4)
    per_tensor = torch.fake_quantize_per_tensor_affine(x, activations.scale, activations.zero_point, 0, 31)
    per_channel = torch.fake_quantize_per_channel_affine(x, weights.scale, weights.zero_point, 0, -8, 7)
    assert torch.equal(activations(x), per_tensor)
    assert torch.equal(weights(x), per_channel)


def test_nan_stays_nan():
    quantizer = asymmetric_per_tensor(torch.tensor(-1.0), torch.tensor(1.0), 8)
    assert quantizer(torch.tensor([torch.nan, 0.0])).isnan().tolist() == [True, False]


def test_gradients_reach_the_weight():
    weight = torch.randn(3, 5, requires_grad=True)
    symmetric_per_channel(weight, 4)(weight).sum().backward()
    assert weight.grad.eq(1).float().mean() > 0.5


@settings(deadline=None, max_examples=30)
@given(bits=BITS, seed=st.integers(0, 2**31), per_channel=st.booleans())
def test_a_scale_that_learns_gets_the_gradient_of_lsq(bits, seed, per_channel):
    """Σ gradient · (x̂ − x) / scale inside the range, x̂ / scale outside (Esser et al. 2020, eq. 3)."""
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(4, 50, generator=generator)
    scale = torch.rand(4 if per_channel else (), generator=generator) * 0.3 + 0.05
    quantizer = AffineQuantizer(scale, None, bits)
    quantizer.scale.requires_grad_()
    gradient = torch.randn(4, 50, generator=generator)
    (y := quantizer(x)).backward(gradient)
    wide = scale.view(-1, 1).double() if per_channel else scale.double()
    levels = (x.double() / wide).round()
    inside = (levels >= quantizer.lowest) & (levels <= quantizer.highest)
    slopes = torch.where(inside, y.detach().double() - x.double(), y.detach().double()) / wide
    expected = (gradient.double() * slopes).sum(1 if per_channel else (0, 1))
    torch.testing.assert_close(quantizer.scale.grad.double(), expected, rtol=1e-3, atol=1e-3)


def test_scales_stay_in_float32_when_the_model_is_cast():
    quantizer = symmetric_per_channel(torch.randn(3, 5), 8).to(torch.bfloat16)
    assert quantizer.scale.dtype == torch.float32
    assert quantizer.zero_point.dtype == torch.int32


@pytest.mark.parametrize("bits", [1, 9, 0, -4, 4.0])
def test_bits_out_of_range_are_refused(bits):
    with pytest.raises(PsaqError, match="2 to 8"):
        AffineQuantizer(torch.tensor(1.0), None, bits)


def test_a_quantiser_shows_what_it_does():
    assert "uint8, scale=0.00784" in repr(asymmetric_per_tensor(torch.tensor(-1.0), torch.tensor(1.0), 8))
    assert "int4, 3 channels" in repr(symmetric_per_channel(torch.randn(3, 5), 4))

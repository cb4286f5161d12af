"""Scales for groups of inputs against their definition in float64, and what they do to error and size."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psaq.quantization.passes.gptq import round_weight
from psaq.quantization.quantizers.affine import AffineQuantizer, least_error_per_channel, symmetric_per_channel
from psaq.quantization.quantizers.groups import half_precision, in_groups

BITS = st.integers(2, 8)
SEEDS = st.integers(0, 2**31)
PER_CHANNEL = st.sampled_from([symmetric_per_channel, least_error_per_channel])


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def grouped(weight: torch.Tensor, bits: int, group: int, per_channel=least_error_per_channel) -> AffineQuantizer:
    return in_groups(weight, group, lambda part, _: per_channel(part, bits))


def oracle(weight: np.ndarray, scale: np.ndarray, group: int, bits: int) -> np.ndarray:
    """Each weight by its own group's scale, in float64."""
    quantised = np.empty(weight.shape)
    for column in range(weight.shape[1]):
        step = scale[:, column // group].astype(np.float64)
        levels = np.clip(np.round(weight[:, column] / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        quantised[:, column] = step * levels
    return quantised


@settings(deadline=None, max_examples=15)
@given(seed=SEEDS, bits=BITS, inputs=st.integers(1, 50), group=st.integers(1, 60), per_channel=PER_CHANNEL)
def test_every_weight_is_rounded_by_its_groups_scale(seed, bits, inputs, group, per_channel):
    weight = normal(seed, 4, inputs)
    quantizer = grouped(weight, bits, group, per_channel)
    assert quantizer.scale.shape == (4, -(-inputs // group))
    expected = oracle(weight.double().numpy(), quantizer.scale.numpy(), group, bits)
    off = np.abs(quantizer(weight).double().numpy() - expected) / quantizer.scales(inputs).numpy()
    assert ((off < 1e-3) | (np.abs(off - 1) < 1e-3)).all(), "only a tie may round the other way"
    assert torch.equal(quantizer(quantizer(weight)), quantizer(weight))


@settings(deadline=None, max_examples=15)
@given(seed=SEEDS, bits=BITS, inputs=st.integers(1, 50), per_channel=PER_CHANNEL)
def test_a_group_of_all_inputs_is_one_scale_a_channel(seed, bits, inputs, per_channel):
    weight = normal(seed, 4, inputs)
    whole = per_channel(weight, bits)
    as_group, halved = (
        grouped(weight, bits, inputs, per_channel),
        AffineQuantizer(half_precision(whole.scale), None, bits),
    )
    assert torch.equal(as_group.scale[:, 0], halved.scale)
    assert torch.equal(as_group(weight), halved(weight))
    assert torch.equal(as_group.integers(weight), halved.integers(weight))
    assert torch.equal(as_group.real(as_group.integers(weight)), as_group(weight))


@settings(deadline=None, max_examples=15)
@given(seed=SEEDS, bits=BITS, group=st.integers(1, 30))
def test_scales_come_back_from_half_precision(seed, bits, group):
    scale = grouped(normal(seed, 3, 40) * 1e-3, bits, group, symmetric_per_channel).scale
    assert torch.equal(scale.half().float(), scale)
    assert (scale > 0).all()


def test_scales_beyond_half_precision_are_its_smallest_and_largest():
    scale = half_precision(torch.tensor([1e-20, 6e-8, 0.1, 1e9]))
    assert scale.isfinite().all()
    assert (scale > 0).all()
    assert scale[2].item() == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("bits", [2, 4])
def test_smaller_groups_have_less_error(bits):
    """On average over the layers' weights, whose channels have inputs of different sizes."""
    weights = [normal(seed, 8, 256) * torch.logspace(0, -1, 256)[torch.randperm(256)] for seed in range(2)]
    errors = [
        torch.stack([(grouped(weight, bits, group)(weight) - weight).square().mean() for weight in weights]).mean()
        for group in (256, 128, 64, 32)
    ]
    assert errors == sorted(errors, reverse=True)


@settings(deadline=None, max_examples=10)
@given(seed=SEEDS, bits=BITS, group=st.integers(3, 20))
def test_gptq_rounds_onto_each_groups_grid(seed, bits, group):
    weight, x = normal(seed, 5, 40).double(), normal(seed + 1, 200, 40).double()
    quantizer = grouped(weight, bits, group, symmetric_per_channel)
    rounded = round_weight(weight, quantizer, x.T @ x / 200, 0.1).float()
    assert torch.equal(quantizer(rounded), rounded)


def test_the_gradient_passes_straight_through():
    weight = normal(0, 3, 10).requires_grad_()
    quantizer = AffineQuantizer(torch.tensor([[0.1, 0.2, 10.0]] * 3), None, 4, group=4)
    quantizer.scale.requires_grad_()
    (quantizer(weight) * torch.arange(10.0)).sum().backward()
    inside = (weight.detach() / quantizer.scales(10).detach()).round().clamp(-8, 7) * quantizer.scales(10)
    is_inside = (inside - weight).abs() <= quantizer.scales(10) / 2 + 1e-6
    assert torch.equal(weight.grad, is_inside * torch.arange(10.0).expand(3, 10))
    assert quantizer.scale.grad.shape == (3, 3)
    assert quantizer.scale.grad.abs().sum() > 0


def test_it_says_how_it_is_grouped():
    assert "int4, 3 channels in groups of 8 inputs" in repr(grouped(normal(0, 3, 20), 4, 8))

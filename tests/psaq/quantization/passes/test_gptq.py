"""GPTQ against optimal brain surgery written out, and against rounding to nearest."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psaq.quantization.passes.gptq import round_weight
from psaq.quantization.quantizers.affine import AffineQuantizer, symmetric_per_channel

SEEDS = st.integers(0, 2**31)


def problem(seed: int, outputs: int, inputs: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and the second moment of correlated inputs: a few directions carry most of them."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=draw, dtype=torch.float64)
    mixing = torch.randn(inputs, inputs, generator=draw, dtype=torch.float64) / inputs**0.5
    spread = torch.logspace(0, -1.5, inputs, dtype=torch.float64)
    x = (torch.randn(rows, inputs, generator=draw, dtype=torch.float64) * spread) @ mixing
    return weight, x.T @ x / rows


def cost(weight: torch.Tensor, rounded: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
    """tr((W − Ŵ) H (W − Ŵ)ᵀ)."""
    error = weight - rounded
    return (error @ moment * error).sum()


def on_nearest(quantizer: AffineQuantizer, weight: torch.Tensor) -> torch.Tensor:
    return quantizer(weight.float()).double()


def surgery(weight: torch.Tensor, quantizer: AffineQuantizer, moment: torch.Tensor, damping: float) -> torch.Tensor:
    """Optimal brain surgery: round one input, move the others by the inverse Hessian, strike it out of the inverse."""
    weight, rounded = weight.clone(), torch.empty_like(weight)
    inverse = torch.linalg.inv(moment + damping * moment.diagonal().mean() * torch.eye(len(moment)).double())
    for column in moment.diagonal().argsort(descending=True).tolist():
        rounded[:, column] = quantizer(weight[:, column].float())
        error = (weight[:, column] - rounded[:, column]) / inverse[column, column]
        weight -= torch.outer(error, inverse[column])
        inverse = inverse - torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return rounded


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, bits=st.integers(3, 8), inputs=st.integers(1, 24), damping=st.sampled_from([0.01, 0.1, 1.0]))
def test_it_is_optimal_brain_surgery(seed, bits, inputs, damping):
    weight, moment = problem(seed, 5, inputs, 100)
    quantizer = symmetric_per_channel(weight, bits)
    found = round_weight(weight, quantizer, moment, damping)
    differing = (found - surgery(weight, quantizer, moment, damping)).abs() > 1e-6
    assert not differing.any()


def test_more_inputs_than_a_block_are_one_problem():
    weight, moment = problem(1, 3, 150, 400)
    quantizer = symmetric_per_channel(weight, 4)
    expected = surgery(weight, quantizer, moment, 0.05)
    assert torch.equal(round_weight(weight, quantizer, moment, 0.05), expected)


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, bits=st.integers(3, 6), inputs=st.integers(16, 80))
def test_it_costs_less_than_rounding_to_nearest(seed, bits, inputs):
    weight, moment = problem(seed, 24, inputs, 4 * inputs)
    quantizer = symmetric_per_channel(weight, bits)
    rounded = round_weight(weight, quantizer, moment, 0.01)
    assert cost(weight, rounded, moment) < cost(weight, on_nearest(quantizer, weight), moment)


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, bits=st.integers(2, 8))
def test_the_result_is_on_the_grid(seed, bits):
    weight, moment = problem(seed, 6, 20, 30)
    quantizer = symmetric_per_channel(weight, bits)
    rounded = round_weight(weight, quantizer, moment, 0.1).float()
    assert torch.equal(quantizer(rounded), rounded)


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, bits=st.integers(2, 8))
def test_with_uncorrelated_inputs_it_is_rounding_to_nearest(seed, bits):
    weight, _ = problem(seed, 6, 20, 1)
    quantizer = symmetric_per_channel(weight, bits)
    moment = torch.diag(torch.rand(20, generator=torch.Generator().manual_seed(seed)).double() + 0.01)
    assert torch.equal(round_weight(weight, quantizer, moment, 0.1), on_nearest(quantizer, weight))


@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_fewer_rows_than_inputs_are_enough(rows, damping):
    weight, moment = problem(2, 4, 70, max(rows, 1))
    moment = moment * bool(rows)
    quantizer = symmetric_per_channel(weight, 4)
    rounded = round_weight(weight, quantizer, moment, damping)
    assert torch.equal(quantizer(rounded.float()).double(), rounded)
    assert cost(weight, rounded, moment) <= cost(weight, on_nearest(quantizer, weight), moment)


def test_the_weight_given_is_left_alone():
    weight, moment = problem(3, 4, 8, 20)
    before = weight.clone()
    round_weight(weight, symmetric_per_channel(weight, 4), moment, 0.1)
    assert torch.equal(weight, before)

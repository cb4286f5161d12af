"""Moments of a layer's input, batch by batch, against those of everything at once."""

import pytest
import torch
from torch import nn

from psaq.quantization.passes.im2col import vectors_of
from psaq.quantization.passes.statistics import InputStatistics


def rows(seed: int) -> torch.Tensor:
    return torch.randn(50, 4, generator=torch.Generator().manual_seed(seed)) + torch.tensor([0.0, 1.0, -2.0, 3.0])


def gathered(noisy: torch.Tensor, clean: torch.Tensor, centred: bool) -> InputStatistics:
    statistics = InputStatistics(centred)
    for start in (0, 20, 40):
        batch = [vectors_of(nn.Linear(4, 1), x[start : start + 20]) for x in (noisy, clean)]
        statistics.add(*batch)
    return statistics


@pytest.mark.parametrize("centred", [True, False])
def test_moments_are_those_of_all_rows(centred):
    noisy, clean = rows(1), rows(1) + 0.1 * rows(2)
    statistics = gathered(noisy, clean, centred)
    left, right = noisy.double(), clean.double()
    torch.testing.assert_close(statistics.mean, left.mean(0))
    torch.testing.assert_close(statistics.reference_mean, right.mean(0))
    if centred:
        left, right = left - left.mean(0), right - right.mean(0)
    torch.testing.assert_close(statistics.second_moment, left.T @ left / 50, rtol=0, atol=1e-10)
    torch.testing.assert_close(statistics.cross_moment, left.T @ right / 50, rtol=0, atol=1e-10)


@pytest.mark.parametrize("value", [0.0, 1e-3, 7.3])
def test_an_input_that_never_changes_has_a_positive_definite_moment(value):
    constant = torch.full((50, 4), value)
    moment = gathered(constant, constant, centred=True).second_moment
    assert torch.linalg.eigvalsh(moment).min() > 0
    assert moment.max() <= max(1e-10 * value**2, 1e-30)

import math

import pytest
import torch

from psaq_kernels import density_entropy


def test_of_a_gaussian():
    """½ log(2πe σ²)."""
    grid = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    sigma = torch.tensor([[0.02], [0.1]], dtype=torch.float64)
    density = torch.exp(-0.5 * (grid / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
    expected = 0.5 * torch.log(2 * math.pi * math.e * sigma[:, 0] ** 2)
    torch.testing.assert_close(density_entropy(density, grid, floor=0), expected)


def test_floor_is_added_to_the_density():
    grid = torch.tensor([0.0, 1.0])
    entropy = density_entropy(torch.zeros(2), grid, floor=0.5)
    torch.testing.assert_close(entropy, torch.tensor(-0.5 * math.log(0.5)))


def test_an_empty_stretch_contributes_nothing_and_a_finite_gradient():
    density = torch.tensor([0.0, 0.0, 1.0, 2.0], requires_grad=True)
    entropy = density_entropy(density, torch.tensor([0.0, 1.0, 2.0, 3.0]), floor=0)
    torch.testing.assert_close(entropy.detach(), torch.tensor(-math.log(2)))
    entropy.backward()
    assert density.grad.isfinite().all()


def test_nan_stays_nan():
    density = torch.tensor([[1.0, math.nan], [1.0, 1.0]])
    assert density_entropy(density, torch.tensor([0.0, 1.0])).isnan().tolist() == [True, False]


@pytest.mark.parametrize(
    ("density", "grid", "floor", "named"),
    [
        (torch.ones(3), torch.ones(4), 0.0, "grid"),
        (torch.ones(3), torch.ones(3, 1), 0.0, "grid"),
        (torch.ones(3), torch.ones(3), -1.0, "floor"),
        (torch.ones(3), torch.ones(3), math.nan, "floor"),
    ],
)
def test_bad_input_is_refused_by_name(density, grid, floor, named):
    with pytest.raises(ValueError, match=named):
        density_entropy(density, grid, floor)

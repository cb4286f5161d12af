"""The Triton kernels, on the GPU where there is one, else under Triton's interpreter: small and odd shapes."""

import math

import pytest
import torch
from density_oracle import KINDS, exact_density, exact_entropy, make_features, peak_error, relative_error
from repeats import also

from psaq_kernels import density_entropy, similarity_density
from psaq_kernels.density import _density
from psaq_kernels.density_layout import DeviceLayout, LayerShape

pytest.importorskip("triton")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GRID = torch.linspace(-1.3, 1.3, 90, device=DEVICE)


def check(features, bandwidth=0.05, grid=GRID, digits=10):
    """Density, entropy and the gradient of a loss of both against the direct sum in float64."""
    found = [x.clone().to(DEVICE).requires_grad_() for x in features]
    exact = [x.double().to(DEVICE).requires_grad_() for x in features]
    density = similarity_density(found, grid, bandwidth, backend="triton")
    direct = torch.stack([exact_density(x, grid.double(), bandwidth) for x in exact])
    assert peak_error(density, direct.detach()) < 1e-4
    entropy, exact_value = density_entropy(density, grid), exact_entropy(direct, grid.double())
    assert (entropy - exact_value).abs().max() < 1e-4
    weight = torch.sin(3 * grid.double())
    (entropy.sum() + (density * weight).sum()).backward()
    (exact_value.sum() + (direct * weight).sum()).backward()
    for one, other in zip(found, exact, strict=True):
        assert relative_error(one.grad, other.grad) < max(1e-3, 2.0**-digits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 1, 37, 33), (1, 3, 5, 8), *also((1, 1, 2, 80))])
def test_single_layer(kind, shape):
    check([make_features(kind, shape)])


def test_layers_of_different_shapes_in_one_launch():
    shapes = [(2, 1, 33, 24), (2, 4, 9, 16), (2, 1, 12, 7)]
    check([make_features("clustered", shape, seed) for seed, shape in enumerate(shapes)])


def test_narrow_kernel():
    check([make_features("noise-like", (1, 1, 20, 16))], 0.01, torch.linspace(0.5, 1.1, 200, device=DEVICE))


# The interpreter truncates where a GPU rounds, which costs it one digit.
@pytest.mark.parametrize(("dtype", "digits"), [(torch.float16, 10), (torch.bfloat16, 7)])
def test_half_precision(dtype, digits):
    check([make_features("clustered", (2, 1, 20, 16)).to(dtype)], digits=digits)


@pytest.mark.parametrize("order", ["reversed", "shuffled", "short"])
def test_any_grid_will_do(order):
    shuffled = GRID[torch.randperm(len(GRID), generator=torch.Generator().manual_seed(0)).to(DEVICE)]
    grid = {"reversed": GRID.flip(0), "shuffled": shuffled, "short": GRID[30:46]}[order]
    features = make_features("clustered", (1, 1, 20, 16)).to(DEVICE)
    exact = exact_density(features.double(), grid.double(), 0.05)
    assert peak_error(similarity_density(features, grid, 0.05, backend="triton"), exact) < 1e-4


def test_images_in_several_launches_and_windows_in_several_slots(monkeypatch):
    DeviceLayout.of.cache_clear()
    monkeypatch.setattr("psaq_kernels.density_triton.WORKSPACE_BYTES", 1)
    monkeypatch.setattr("psaq_kernels.density_layout.MOST_DISTANCES", 2 * 6**2)
    assert LayerShape(3, 5, 6, 8).slots == 3
    check([make_features("clustered", (3, 5, 6, 8)), make_features("random", (3, 1, 6, 8))])
    DeviceLayout.of.cache_clear()


def test_zero_vector_has_similarity_zero_and_no_gradient():
    features = make_features("random", (1, 1, 9, 8))
    features[0, 0, 3] = 0
    exact = exact_density(features.double().to(DEVICE), GRID.double(), 0.05)
    features = features.to(DEVICE).requires_grad_()
    density = similarity_density(features, GRID, 0.05, backend="triton")
    assert peak_error(density, exact) < 1e-4
    density.square().sum().backward()
    assert (features.grad[0, 0, 3] == 0).all()
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_is_not_finite_spoils_its_image_and_no_other(poison):
    features = make_features("random", (2, 2, 9, 8))
    features[1, 0, 4, 2] = poison
    features = features.to(DEVICE).requires_grad_()
    density = similarity_density(features, GRID, 0.05, backend="triton")
    assert density.isnan().all(1).tolist() == [False, True]
    assert density[0].isfinite().all()
    density[0].square().sum().backward()
    assert features.grad[1].isnan().all()
    assert features.grad[0].isfinite().all()


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("others", [[-0.2, 0.3], []])
def test_a_point_that_is_not_finite_has_no_density(poison, others):
    features = make_features("random", (1, 1, 9, 8)).to(DEVICE)
    clean, grid = (torch.tensor(points, device=DEVICE) for points in ([*others, 0.0], [*others, 0.0, poison]))
    density = similarity_density(features, grid, 0.05, backend="triton")
    assert density[0, -1].isnan()
    assert torch.equal(density[:, :-1], similarity_density(features, clean, 0.05, backend="triton"))
    assert similarity_density(features, grid[-1:], 0.05, backend="triton").isnan().all()


@pytest.mark.parametrize("scale", [1e-38, 1e37])
def test_extreme_magnitudes_neither_overflow_nor_vanish(scale):
    features = make_features("random", (1, 1, 9, 8)).to(DEVICE) * scale / 10
    exact = exact_density(features.double(), GRID.double(), 0.05)
    assert peak_error(similarity_density(features, GRID, 0.05, backend="triton"), exact) < 1e-4


def test_results_repeat_to_the_bit():
    runs = []
    for _ in range(2):
        features = make_features("noise-like", (1, 2, 33, 16)).to(DEVICE).requires_grad_()
        density = similarity_density(features, GRID, 0.05, backend="triton")
        density.square().sum().backward()
        runs.append((density, features.grad))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])


def test_too_many_patches_for_a_counter_go_to_torch_or_are_refused(monkeypatch):
    monkeypatch.setattr("psaq_kernels.density.MOST_DISTANCES", 8**2)
    features = make_features("random", (1, 1, 9, 8)).to(DEVICE)
    assert similarity_density(features, GRID, 0.05).isfinite().all()
    with pytest.raises(ValueError, match="features"):
        similarity_density(features, GRID, 0.05, backend="triton")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # by opcheck itself
def test_opcheck():
    packed = make_features("random", (1, 1, 5, 8)).flatten().to(DEVICE).requires_grad_()
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(_density, (packed, [1, 1, 5, 8], GRID, 0.1, "triton"), test_utils=tests)

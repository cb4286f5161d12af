import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from density_oracle import (
    KINDS,
    covering_grid,
    exact_density,
    exact_entropy,
    make_features,
    peak_error,
    relative_error,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from psaq_kernels import BackendError, density_entropy, density_torch, similarity_density, similarity_range
from psaq_kernels.density import _density
from psaq_kernels.density_layout import LayerShape
from psaq_kernels.density_workspace import BLOCK

SHAPES = [(2, 1, 50, 64), (1, 3, 17, 33), (3, 1, 2, 8), (1, 1, 91, 8)]
BANDWIDTHS = [0.002, 0.01, 0.05, 0.2]


@pytest.mark.parametrize("bandwidth", BANDWIDTHS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_density_and_entropy_are_those_of_the_direct_sum(kind, shape, bandwidth):
    features, grid = make_features(kind, shape), covering_grid(bandwidth)
    exact = exact_density(features.double(), grid.double(), bandwidth)
    density = similarity_density(features, grid, bandwidth)
    assert density.dtype == torch.float32
    assert peak_error(density, exact) < 1e-4
    entropy = density_entropy(density, grid)
    assert (entropy - exact_entropy(exact, grid.double())).abs().max() < 1e-4


def test_what_inference_mode_leaves_behind_is_used_outside_it():
    features, grid = make_features("clustered", (2, 1, 50, 64)), covering_grid(0.05)

    def first_inside_then_outside() -> list[torch.Tensor]:
        with torch.inference_mode():
            inside = similarity_density(features, grid, 0.05, backend="torch")
        found = features.clone().requires_grad_()
        outside = similarity_density(found, grid, 0.05, backend="torch")
        return [inside, outside.detach(), *torch.autograd.grad(outside.square().sum(), found)]

    with ThreadPoolExecutor(1) as fresh:  # a thread without a workspace
        inside, outside, gradient = fresh.submit(first_inside_then_outside).result()
    assert torch.equal(inside, outside)
    assert gradient.any()


@pytest.mark.parametrize("bandwidth", BANDWIDTHS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_that_of_the_direct_sum(kind, shape, bandwidth):
    """For a smooth weighting of the density, as any loss of interest has."""
    features, grid = make_features(kind, shape), covering_grid(bandwidth)
    weight = torch.sin(3 * grid.double()) + grid.double() ** 2
    found, exact = features.clone().requires_grad_(), features.double().requires_grad_()
    (similarity_density(found, grid, bandwidth) * weight).sum().backward()
    (exact_density(exact, grid.double(), bandwidth) * weight).sum().backward()
    assert relative_error(found.grad, exact.grad) < 1e-3


@pytest.mark.parametrize("bandwidth", BANDWIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_entropy_gradient_is_that_of_the_direct_sum(kind, bandwidth):
    features, grid = make_features(kind, (2, 1, 50, 64)), covering_grid(bandwidth)
    found, exact = features.clone().requires_grad_(), features.double().requires_grad_()
    density_entropy(similarity_density(found, grid, bandwidth), grid).sum().backward()
    exact_entropy(exact_density(exact, grid.double(), bandwidth), grid.double()).sum().backward()
    assert relative_error(found.grad, exact.grad) < 1e-3


def test_entropy_gradient_survives_where_float32_similarities_cannot_tell_patches_apart():
    """Similarities within 1e-4 of 1: eager float32 is off by several times 1e-3 here."""
    grid = covering_grid(0.01)
    features = 1 + 0.01 * make_features("random", (1, 1, 200, 32))
    found, exact = features.clone().requires_grad_(), features.double().requires_grad_()
    density_entropy(similarity_density(found, grid, 0.01), grid).sum().backward()
    exact_entropy(exact_density(exact, grid.double(), 0.01), grid.double()).sum().backward()
    assert relative_error(found.grad, exact.grad) < 1e-3


@pytest.mark.parametrize(
    "grid",
    [
        torch.linspace(-0.5, 0.7, 16),  # does not cover the similarities
        torch.linspace(-3, 3, 500),  # reaches beyond them
        torch.linspace(-1, 1, 101).sign() * torch.linspace(-1, 1, 101).abs() ** 2,  # not uniform
        torch.linspace(-1, 1, 100)[torch.randperm(100, generator=torch.Generator().manual_seed(0))],  # not sorted
        torch.linspace(-1, 1, 2048),
    ],
    ids=["short", "long", "uneven", "unsorted", "fine"],
)
def test_any_grid_will_do(grid):
    features = make_features("clustered", (2, 1, 40, 16))
    exact = exact_density(features.double(), grid.double(), 0.03)
    assert peak_error(similarity_density(features, grid, 0.03), exact) < 1e-4


def test_a_list_is_its_layers():
    shapes = [(2, 1, 30, 16), (2, 1, 30, 16), (2, 4, 9, 24), (2, 1, 12, 8)]
    layers = [make_features("clustered", shape, seed).requires_grad_() for seed, shape in enumerate(shapes)]
    apart = [layer.detach().clone().requires_grad_() for layer in layers]
    grid = covering_grid(0.05)
    together = similarity_density(layers, grid, 0.05)
    torch.testing.assert_close(together, torch.stack([similarity_density(x, grid, 0.05) for x in apart]))
    density_entropy(together, grid).sum().backward()
    sum(density_entropy(similarity_density(x, grid, 0.05), grid).sum() for x in apart).backward()
    for one, other in zip(layers, apart, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float16, 11), (torch.bfloat16, 8)])
def test_half_precision_features_are_read_exactly(dtype, digits):
    """Only the gradient is rounded, to the features' own digits."""
    features, grid = make_features("clustered", (2, 1, 40, 32)).to(dtype), covering_grid(0.02)
    found, exact = features.clone().requires_grad_(), features.double().requires_grad_()
    density, direct = similarity_density(found, grid, 0.02), exact_density(exact, grid.double(), 0.02)
    assert peak_error(density, direct.detach()) < 1e-4
    density_entropy(density, grid).sum().backward()
    exact_entropy(direct, grid.double()).sum().backward()
    assert found.grad.dtype == dtype
    assert relative_error(found.grad, exact.grad) < 2.0**-digits


def test_strides_do_not_matter():
    features = make_features("clustered", (2, 3, 20, 16))
    scattered = features.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0).requires_grad_()
    grid = covering_grid(0.05)
    packed = features.clone().requires_grad_()
    density = similarity_density(scattered, grid, 0.05)
    assert torch.equal(density, similarity_density(packed, grid, 0.05))
    assert torch.equal(
        torch.autograd.grad(density.square().sum(), scattered)[0],
        torch.autograd.grad(similarity_density(packed, grid, 0.05).square().sum(), packed)[0],
    )


def test_results_repeat_to_the_bit():
    grid = covering_grid(0.01)
    runs = []
    for _ in range(2):
        features = make_features("noise-like", (3, 1, 196, 64)).requires_grad_()
        density = similarity_density(features, grid, 0.01)
        density_entropy(density, grid).sum().backward()
        runs.append((density, features.grad))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])


sizes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(2, 30), st.integers(2, 20))


@settings(max_examples=25, deadline=None)
@given(shape=sizes, seed=st.integers(0, 2**20))
def test_permuting_patches_changes_nothing(shape, seed):
    features, grid = make_features("clustered", shape, seed), covering_grid(0.05)
    order = torch.randperm(shape[2], generator=torch.Generator().manual_seed(seed))
    permuted = similarity_density(features[:, :, order], grid, 0.05)
    torch.testing.assert_close(permuted, similarity_density(features, grid, 0.05), atol=1e-3, rtol=0)


@settings(max_examples=25, deadline=None)
@given(shape=sizes, seed=st.integers(0, 2**20), exponent=st.integers(-30, 30))
def test_scaling_a_patch_changes_nothing(shape, seed, exponent):
    features, grid = make_features("random", shape, seed), covering_grid(0.05)
    scaled = features.clone()
    scaled[:, :, 0] *= 10.0**exponent
    torch.testing.assert_close(
        similarity_density(scaled, grid, 0.05), similarity_density(features, grid, 0.05), atol=1e-3, rtol=0
    )


@settings(max_examples=25, deadline=None)
@given(shape=sizes, seed=st.integers(0, 2**20))
def test_windows_are_pooled(shape, seed):
    features, grid = make_features("noise-like", shape, seed), covering_grid(0.05)
    apart = torch.stack([similarity_density(features[:, [w]], grid, 0.05) for w in range(shape[1])])
    torch.testing.assert_close(similarity_density(features, grid, 0.05), apart.mean(0), atol=1e-3, rtol=0)


@settings(max_examples=25, deadline=None)
@given(shape=sizes, seed=st.integers(0, 2**20), bandwidth=st.sampled_from(BANDWIDTHS))
def test_density_integrates_to_one(shape, seed, bandwidth):
    grid = covering_grid(bandwidth)
    density = similarity_density(make_features("random", shape, seed), grid, bandwidth)
    assert (density >= 0).all()
    torch.testing.assert_close(torch.trapezoid(density, grid), torch.ones(shape[0]), atol=1e-4, rtol=0)


def test_zero_vector_has_similarity_zero_and_no_gradient():
    features = make_features("random", (2, 1, 20, 16))
    features[1, 0, 3] = 0
    exact = exact_density(features.double(), covering_grid(0.05).double(), 0.05)
    features.requires_grad_()
    density = similarity_density(features, covering_grid(0.05), 0.05)
    assert peak_error(density, exact) < 1e-4
    density.square().sum().backward()
    assert (features.grad[1, 0, 3] == 0).all()
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("scale", [1e-38, 1e-25, 1e25, 1e37])
def test_extreme_magnitudes_neither_overflow_nor_vanish(scale):
    features, grid = make_features("random", (1, 1, 20, 16)), covering_grid(0.05)
    features = features / features.abs().max()
    exact = exact_density((features * scale).double(), grid.double(), 0.05)
    assert peak_error(similarity_density(features * scale, grid, 0.05), exact) < 1e-4


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_spoils_its_image_and_no_other(poison):
    features = make_features("random", (3, 2, 20, 16))
    clean = features.clone()
    features[1, 0, 4, 2] = poison
    features.requires_grad_()
    grid = covering_grid(0.05)
    density = similarity_density(features, grid, 0.05)
    assert density[1].isnan().all()
    torch.testing.assert_close(density[[0, 2]], similarity_density(clean[[0, 2]], grid, 0.05))
    density[[0, 2]].square().sum().backward()
    assert features.grad[1].isnan().all()
    assert features.grad[[0, 2]].isfinite().all()
    assert density_entropy(density, grid).isnan().tolist() == [False, True, False]
    lowest, highest = similarity_range(features)
    assert lowest.isnan()
    assert highest.isnan()


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_point_that_is_not_finite_has_no_density(poison):
    features = make_features("random", (1, 1, 9, 8))
    density = similarity_density(features, torch.tensor([-0.2, poison, 0.3]), 0.05)
    assert density.isnan().tolist() == [[False, True, False]]
    torch.testing.assert_close(density[:, ::2], similarity_density(features, torch.tensor([-0.2, 0.3]), 0.05))


def test_no_image_gives_no_density():
    features = torch.empty(0, 1, 5, 4, requires_grad=True)
    density = similarity_density([features, features], covering_grid(0.1), 0.1)
    assert density.shape == (2, 0, len(covering_grid(0.1)))
    density.sum().backward()
    assert features.grad.shape == features.shape


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"features": torch.ones(2, 5, 4)}, ValueError, "features"),
        ({"features": torch.ones(2, 1, 1, 4)}, ValueError, "features"),
        ({"features": torch.ones(2, 1, 5, 4).double()}, TypeError, "features"),
        ({"features": torch.ones(2, 1, 5, 4, dtype=torch.int32)}, TypeError, "features"),
        ({"features": []}, ValueError, "features"),
        ({"features": [torch.ones(2, 1, 5, 4), torch.ones(3, 1, 5, 4)]}, ValueError, "features"),
        ({"grid": torch.ones(2, 3)}, ValueError, "grid"),
        ({"grid": torch.ones(0)}, ValueError, "grid"),
        ({"grid": torch.arange(4)}, ValueError, "grid"),
        ({"bandwidth": 0.0}, ValueError, "bandwidth"),
        ({"bandwidth": -0.1}, ValueError, "bandwidth"),
        ({"bandwidth": math.nan}, ValueError, "bandwidth"),
        ({"backend": "cuda"}, ValueError, "backend"),
    ],
)
def test_bad_input_is_refused_by_name(changes, error, named):
    arguments = {"features": torch.ones(2, 1, 5, 4), "grid": torch.linspace(-1, 1, 9), "bandwidth": 0.1} | changes
    with pytest.raises(error, match=named):
        similarity_density(**arguments)


def test_triton_on_the_cpu_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match=r'backend="triton".*cpu'):
        similarity_density(torch.ones(1, 1, 5, 4), torch.linspace(-1, 1, 9), 0.1, backend="triton")


def test_range_is_that_of_all_similarities():
    layers = [make_features("random", (2, 1, 30, 8)), make_features("clustered", (2, 3, 9, 16))]
    lowest, highest = similarity_range(layers)
    units = [layer.double() / layer.double().norm(dim=-1, keepdim=True) for layer in layers]
    similarities = torch.cat([(unit @ unit.mT).flatten() for unit in units])
    assert lowest.item() == pytest.approx(similarities.min().item(), abs=1e-6)
    assert highest.item() == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match="features"):
        similarity_range(torch.ones(0, 1, 3, 4))


# Registration --------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # by opcheck itself
def test_opcheck():
    layers = [make_features("random", (2, 1, 6, 8)), make_features("random", (2, 2, 4, 4))]
    packed = torch.cat([layer.flatten() for layer in layers]).detach().requires_grad_()
    sizes = [size for layer in layers for size in layer.shape]
    torch.library.opcheck(_density, (packed, sizes, torch.linspace(-1, 1, 30), 0.1, "torch"))


def test_compiles_without_a_graph_break():
    def entropy(layers, grid):
        return density_entropy(similarity_density(layers, grid, 0.1), grid).sum()

    layers = [make_features("random", (2, 1, 6, 8), seed).requires_grad_() for seed in range(2)]
    grid = torch.linspace(-1, 1, 30)
    compiled = torch.compile(entropy, fullgraph=True, backend="aot_eager")
    eager, found = entropy(layers, grid), compiled(layers, grid)
    torch.testing.assert_close(found, eager)
    for one, other in zip(torch.autograd.grad(found, layers), torch.autograd.grad(eager, layers), strict=True):
        torch.testing.assert_close(one, other)


# Memory --------------------------------------------------------------------------------------------------------------


class _Largest(TorchDispatchMode):
    """The size of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("shape", [(1, 1, 2048, 8), (1, 256, 49, 8), (64, 1, 196, 8)])
def test_similarities_are_never_all_in_memory(shape):
    features, grid, layers = make_features("random", shape), torch.linspace(-1, 1, 200), (LayerShape(*shape),)
    with _Largest() as largest:
        density_torch.forward(features.flatten(), layers, grid, 0.01)
        density_torch.backward(torch.ones(1, shape[0], 200), features.flatten(), layers, grid, 0.01)
    assert np.prod(shape[:2]) * shape[2] ** 2 > 2 * BLOCK
    assert largest.elements <= max(BLOCK, 200 * 3 * 900, features.numel())

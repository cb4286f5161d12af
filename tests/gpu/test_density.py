"""The patch-similarity density on a GPU, at full size: run `pytest tests/gpu` where there is one."""

import math

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

from psaq_kernels import density_entropy, similarity_density
from psaq_kernels.density import _density

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"),
]

DEVICE = "cuda"
BANDWIDTHS = [0.002, 0.01, 0.05, 0.2]
SHAPES = [(32, 1, 196, 64), (32, 64, 49, 32), (2, 1, 196, 768), (2, 1, 577, 1536), (3, 5, 37, 33), (4, 1, 2, 8)]
EXTREMES = [(1, 1, 4096, 8), (1, 256, 49, 32), (512, 1, 50, 64), (1, 1, 2, 1536)]
DEIT = [(32, 1, 196, 64)] * 12
SWIN = [(32, 64, 49, 32)] * 2 + [(32, 16, 49, 32)] * 2 + [(32, 4, 49, 32)] * 6 + [(32, 1, 49, 32)] * 2


def features_of(kind: str, shape: tuple[int, int, int, int], seed: int = 0) -> torch.Tensor:
    return make_features(kind, shape, seed).to(DEVICE)


def loss(density: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    return density_entropy(density, grid).sum() + (density * torch.sin(3 * grid)).sum()


def exact_loss(density: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    return exact_entropy(density, grid).sum() + (density * torch.sin(3 * grid)).sum()


def check(features: torch.Tensor, bandwidth: float, grid: torch.Tensor, most_error: float = 1e-3) -> None:
    """Density, entropy and gradient of the first and the last image against the direct sum in float64."""
    found, some = features.clone().requires_grad_(), sorted({0, len(features) - 1})
    exact = features[some].double().requires_grad_()
    density, direct = (
        similarity_density(found, grid, bandwidth, backend="triton"),
        exact_density(exact, grid.double(), bandwidth),
    )
    assert peak_error(density[some].detach(), direct.detach()) < 1e-4
    entropy = density_entropy(density, grid)[some] - exact_entropy(direct, grid.double())
    assert entropy.abs().max() < 1e-4
    (gradient,) = torch.autograd.grad(loss(density, grid), found)
    (right,) = torch.autograd.grad(exact_loss(direct, grid.double()), exact)
    assert relative_error(gradient[some], right) < most_error


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_density_entropy_and_gradient_are_those_of_the_direct_sum(kind: str, shape: tuple[int, int, int, int]) -> None:
    check(features_of(kind, shape), 0.05, covering_grid(0.05).to(DEVICE))


@pytest.mark.parametrize("bandwidth", BANDWIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_bandwidth(kind: str, bandwidth: float) -> None:
    check(features_of(kind, (4, 1, 100, 64)), bandwidth, covering_grid(bandwidth).to(DEVICE))


@pytest.mark.parametrize("shape", EXTREMES, ids=str)
def test_the_largest_and_the_smallest_sizes(shape: tuple[int, int, int, int]) -> None:
    check(features_of("clustered", shape), 0.2, torch.linspace(-2.2, 2.2, 48, device=DEVICE))


@pytest.mark.parametrize("points", [16, 2048])
def test_the_coarsest_and_the_finest_grid(points: int) -> None:
    features, grid = features_of("clustered", (4, 1, 50, 64)), torch.linspace(-1.1, 1.1, points, device=DEVICE)
    density = similarity_density(features, grid, 0.01, backend="triton")
    assert peak_error(density, exact_density(features.double(), grid.double(), 0.01)) < 1e-4


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float16, 11), (torch.bfloat16, 8)])
def test_half_precision_features_are_read_exactly(dtype: torch.dtype, digits: int) -> None:
    """Only the gradient is rounded, to the features' own digits."""
    features = features_of("clustered", (8, 1, 196, 64)).to(dtype)
    check(features, 0.02, covering_grid(0.02).to(DEVICE), most_error=max(1e-3, 2.0**-digits))


@pytest.mark.parametrize("shapes", [DEIT, SWIN], ids=["DeiT", "Swin-T"])
def test_all_layers_of_a_model_are_each_by_itself(shapes: list[tuple[int, int, int, int]]) -> None:
    layers = [features_of("clustered", shape, seed).requires_grad_() for seed, shape in enumerate(shapes)]
    grid = covering_grid(0.01).to(DEVICE)
    together = similarity_density(layers, grid, 0.01)
    apart = torch.stack([similarity_density(layer, grid, 0.01) for layer in layers])
    assert peak_error(together, apart) < 1e-5
    gradients = (torch.autograd.grad(loss(density, grid), layers) for density in (together, apart))
    for one, other in zip(*gradients, strict=True):
        assert relative_error(one, other) < 1e-5


def test_both_backends_agree() -> None:
    features, grid = features_of("noise-like", (8, 4, 98, 48)), covering_grid(0.01).to(DEVICE)
    triton, torch_ = (similarity_density(features, grid, 0.01, backend=name) for name in ("triton", "torch"))
    assert peak_error(triton, torch_) < 1e-4


def test_results_repeat_to_the_bit() -> None:
    grid, runs = covering_grid(0.01).to(DEVICE), []
    for _ in range(3):
        features = features_of("noise-like", (32, 1, 196, 64)).requires_grad_()
        density = similarity_density(features, grid, 0.01)
        runs.append((density, torch.autograd.grad(loss(density, grid), features)[0]))
    for density, gradient in runs[1:]:
        assert torch.equal(density, runs[0][0])
        assert torch.equal(gradient, runs[0][1])


def some_shape(seed: int) -> tuple[int, int, int, int]:
    """Up to 3 images, 5 windows, 150 patches and 100 channels."""
    generator = torch.Generator().manual_seed(seed)
    low_high = ((1, 4), (1, 6), (2, 151), (2, 101))
    images, windows, patches, channels = (int(torch.randint(*ends, (), generator=generator)) for ends in low_high)
    return images, windows, patches, channels


@pytest.mark.parametrize("seed", range(16))
@pytest.mark.parametrize("exponent", [-30, 0, 30])
def test_order_and_length_of_features_change_nothing(seed: int, exponent: int) -> None:
    shape = some_shape(seed)
    features, grid = features_of("clustered", shape, seed), covering_grid(0.05).to(DEVICE)
    density = similarity_density(features, grid, 0.05)
    changed = features[:, :, torch.randperm(shape[2], generator=torch.Generator().manual_seed(seed)).to(DEVICE)]
    changed[:, :, 0] *= 10.0**exponent
    torch.testing.assert_close(similarity_density(changed, grid, 0.05), density, atol=1e-3, rtol=0)


@pytest.mark.parametrize("seed", range(16))
def test_windows_are_pooled(seed: int) -> None:
    shape = some_shape(seed)
    features, grid = features_of("noise-like", shape, seed), covering_grid(0.05).to(DEVICE)
    apart = torch.stack([similarity_density(features[:, [w]], grid, 0.05) for w in range(shape[1])])
    torch.testing.assert_close(similarity_density(features, grid, 0.05), apart.mean(0), atol=1e-3, rtol=0)


def test_zero_vectors_and_what_is_not_finite() -> None:
    features = features_of("random", (3, 2, 100, 64))
    features[0, 1, 7] = 0
    features[1, 0, 4, 2] = math.nan
    grid = covering_grid(0.05).to(DEVICE)
    exact = exact_density(features[[0, 2]].double(), grid.double(), 0.05)
    features.requires_grad_()
    density = similarity_density(features, grid, 0.05)
    assert density[1].isnan().all()
    assert peak_error(density[[0, 2]].detach(), exact) < 1e-4
    (gradient,) = torch.autograd.grad(density[[0, 2]].square().sum(), features)
    assert gradient[1].isnan().all()
    assert (gradient[0, 1, 7] == 0).all()
    assert gradient[[0, 2]].isfinite().all()


def test_memory_grows_with_the_features_and_not_with_the_pairs() -> None:
    grid = covering_grid(0.01).to(DEVICE)
    features = features_of("random", (16, 1, 1024, 16)).requires_grad_()
    pairs_bytes = 4 * 16 * 1024**2
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.autograd.grad(loss(similarity_density(features, grid, 0.01), grid), features)
    workspace = 1 << 26  # for cells or tables, however many the images
    assert torch.cuda.max_memory_allocated() - before < workspace + 8 * features.nbytes + 16 * 16 * grid.nbytes
    assert pairs_bytes >= workspace


# Registration, compilation, capture -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # by opcheck itself
def test_opcheck() -> None:
    packed = features_of("random", (2, 2, 30, 16)).flatten().requires_grad_()
    arguments = (packed, [2, 2, 30, 16], torch.linspace(-1, 1, 30, device=DEVICE), 0.1, "triton")
    torch.library.opcheck(_density, arguments)


def test_compiles_without_a_graph_break() -> None:
    grid = covering_grid(0.05).to(DEVICE)

    def entropy(layers: list[torch.Tensor]) -> torch.Tensor:
        return density_entropy(similarity_density(layers, grid, 0.05), grid).sum()

    layers = [features_of("clustered", (8, 1, 196, 64), seed).requires_grad_() for seed in range(3)]
    found, eager = torch.compile(entropy, fullgraph=True)(layers), entropy(layers)
    torch.testing.assert_close(found, eager)
    for one, other in zip(torch.autograd.grad(found, layers), torch.autograd.grad(eager, layers), strict=True):
        torch.testing.assert_close(one, other)


def test_a_cuda_graph_replays_both_passes() -> None:
    grid = covering_grid(0.05).to(DEVICE)
    features = features_of("clustered", (8, 1, 196, 64)).requires_grad_()

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        density = similarity_density(features, grid, 0.05)
        return density, torch.autograd.grad(loss(density, grid), features)[0]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        both()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        density, gradient = both()
    with torch.no_grad():
        features.copy_(features_of("random", (8, 1, 196, 64)))
    graph.replay()
    expected = both()
    assert torch.equal(density, expected[0])
    assert torch.equal(gradient, expected[1])

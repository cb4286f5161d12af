"""The patch-similarity density by its definition, in float64, and the features it is judged on."""

import math

import torch
from jaxtyping import Float64
from torch import Tensor

KINDS = ("random", "clustered", "noise-like", "near-identical")


def exact_density(
    features: Float64[Tensor, "images windows patches channels"], grid: Float64[Tensor, "grid"], bandwidth: float
) -> Float64[Tensor, "images grid"]:
    """Equations 1 and 2 as a direct sum; a zero vector has similarity 0 with all."""
    norm = features.norm(dim=-1, keepdim=True)
    unit = features / torch.where(norm > 0, norm, 1)
    samples = (unit @ unit.mT).flatten(1)
    z = (grid[:, None] - samples[:, None, :]) / bandwidth
    return torch.exp(-z.square() / 2).mean(-1) / (bandwidth * math.sqrt(2 * math.pi))


def exact_entropy(
    density: Float64[Tensor, "images grid"], grid: Float64[Tensor, "grid"], floor: float = 1e-4
) -> Float64[Tensor, "images"]:
    raised = density + floor
    integrand = -raised * raised.log()
    return ((integrand[..., 1:] + integrand[..., :-1]) / 2 * grid.diff()).sum(-1)


def make_features(kind: str, shape: tuple[int, int, int, int], seed: int = 0) -> Tensor:
    """Random directions; two groups; a shared direction with noise; the same with 3 % of noise."""
    generator = torch.Generator().manual_seed(seed)
    images, windows, patches, channels = shape
    noise = torch.randn(shape, generator=generator)
    if kind == "random":
        return noise
    if kind == "clustered":
        centres = torch.randn(images, windows, 2, channels, generator=generator)
        return centres[:, :, torch.arange(patches) % 2] + 0.2 * noise
    shared = torch.randn(images, windows, 1, channels, generator=generator)
    return shared + (0.3 if kind == "noise-like" else 0.03) * noise


def covering_grid(bandwidth: float) -> Tensor:
    """Points closer than the bandwidth, over all of [-1, 1] and the kernel's tails."""
    reach = 1 + 6 * bandwidth
    return torch.linspace(-reach, reach, math.ceil(2.5 * reach / bandwidth))


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Relative L2 distance."""
    return ((found.double() - exact).norm() / exact.norm()).item()


def peak_error(found: Tensor, exact: Tensor) -> float:
    """The largest deviation of any image's density, as a fraction of that density's peak."""
    return ((found.double() - exact).abs().amax(-1) / exact.amax(-1)).amax().item()

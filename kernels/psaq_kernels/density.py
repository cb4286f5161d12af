"""Patch similarity → kernel density: the operation, its registration with torch and the choice of backend."""

import functools
import importlib
import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from psaq_kernels import density_torch
from psaq_kernels.backends import choose_backend
from psaq_kernels.density_layout import MOST_DISTANCES, Features, layer_shapes

SMALLEST_BANDWIDTH = 1e-3  # below, the rounding of a float32 similarity shows in the density
FEATURE_TYPES = (torch.float32, torch.float16, torch.bfloat16)


def similarity_density(
    features: Features | Sequence[Features],
    grid: Float[Tensor, "grid"],
    bandwidth: float,
    backend: str | None = None,
) -> Float[Tensor, "images grid"] | Float[Tensor, "layers images grid"]:
    """Gaussian kernel density of the cosine similarities between patches (PSAQ-ViT, Li et al. 2022, eq. 1, 2).

    For each image, f(x) = 1/(M h) Σ K((x − Γ_ij)/h) over the M = windows · patches² similarities
    Γ_ij = u_i·u_j/(‖u_i‖‖u_j‖) of patches i, j of the same window, the diagonal included. Differentiable in
    ``features``. Memory grows with the features and with images × grid, never with patches². The density is
    within 1e-4 of its own peak, the gradient within 1e-3 (relative L2) of the exact ones for float32 features;
    half-precision features are read exactly and computed in float32.

    Args:
        features: (images, windows, patches, channels), float32, float16 or bfloat16, any strides; or a list of
            them, one per layer, which may differ in all but the number of images, and costs few launches.
        grid: points x at which the density is evaluated, in any order and spacing, inside [-1, 1] or not. At a
            point that is not finite the density is NaN.
        bandwidth: h, in units of similarity, at least 0.001.
        backend: "triton", "torch", or None for the best that can run.

    Returns:
        The density in float32: (images, grid), or (layers, images, grid) for a list. A zero vector has
        similarity 0 with every patch and receives no gradient; an image with a NaN or an infinity among its
        features has a NaN density and a NaN gradient.

    Raises:
        TypeError: a feature tensor or the grid has an unsupported dtype.
        ValueError: the shapes do not fit, a window has fewer than two patches, or the bandwidth is too small.
        BackendError: the backend asked for cannot run on the features' device.
    """
    layers = [features] if isinstance(features, Tensor) else list(features)
    _check(layers, grid, bandwidth)
    chosen = _choose_backend(backend, layers)
    density = _density(*_pack(layers), grid.float(), float(bandwidth), chosen)
    return density[0] if isinstance(features, Tensor) else density


@torch.no_grad()
def similarity_range(
    features: Features | Sequence[Features],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The least and the greatest patch similarity over all layers, images and windows; not differentiable.

    Γ is formed a block at a time. A NaN or an infinity among the features gives NaN.

    Raises:
        TypeError, ValueError: as `similarity_density`; also where there is no image.
    """
    layers = [features] if isinstance(features, Tensor) else list(features)
    _check_features(layers)
    if layers[0].shape[0] == 0:
        raise ValueError("features hold no image, so there is no range of similarities")
    packed, sizes = _pack(layers)
    return density_torch.similarity_extremes(packed, layer_shapes(sizes))


def _choose_backend(requested: str | None, layers: Sequence[Features]) -> str:
    """Triton counts a window's distances in a field of fixed width; torch takes windows of any size."""
    chosen = choose_backend(requested, layers[0].device)
    patches = max(layer.shape[2] for layer in layers)
    if chosen == "torch" or patches**2 <= MOST_DISTANCES:
        return chosen
    if requested == "triton":
        most = math.isqrt(MOST_DISTANCES)
        raise ValueError(f'features have {patches} patches in a window; backend="triton" takes {most}, "torch" any')
    return "torch"


def _pack(layers: Sequence[Features]) -> tuple[Float[Tensor, "elements"], list[int]]:
    """Layers end to end in one tensor, and their four sizes each, so that a whole model is one launch."""
    dtype = functools.reduce(torch.promote_types, (layer.dtype for layer in layers))
    packed = torch.cat([layer.reshape(-1).to(dtype) for layer in layers])
    return packed, [size for layer in layers for size in layer.shape]


def _check(layers: Sequence[Tensor], grid: Tensor, bandwidth: float) -> None:
    _check_features(layers)
    if grid.ndim != 1 or grid.shape[0] == 0 or not grid.is_floating_point():
        raise ValueError(
            f"grid must be a one-dimensional, non-empty tensor of floating-point numbers, "
            f"got {grid.dtype} of shape {tuple(grid.shape)}"
        )
    if grid.device != layers[0].device:
        raise ValueError(f"grid is on {grid.device}, features are on {layers[0].device}; move one to the other")
    if not (math.isfinite(bandwidth) and bandwidth >= SMALLEST_BANDWIDTH):
        raise ValueError(f"bandwidth must be finite and at least {SMALLEST_BANDWIDTH}, got {bandwidth}")


def _check_features(layers: Sequence[Tensor]) -> None:
    if not layers:
        raise ValueError("features is an empty list; pass at least one layer")
    for layer in layers:
        if layer.dtype not in FEATURE_TYPES:
            raise TypeError(f"features must be float32, float16 or bfloat16, got {layer.dtype}; convert them")
        if layer.ndim != 4:
            raise ValueError(
                f"features must have the shape (images, windows, patches, channels), got {tuple(layer.shape)}"
            )
        if layer.shape[1] < 1 or layer.shape[2] < 2 or layer.shape[3] < 1:
            raise ValueError(
                f"features need a window, two patches in it and a channel, got {tuple(layer.shape)}: "
                f"a single patch is similar to itself alone"
            )
        if layer.shape[0] != layers[0].shape[0] or layer.device != layers[0].device:
            raise ValueError("features of all layers must hold the same images, on the same device")


# The operation, as torch knows it ---------------------------------------------------------------------------


@torch.library.custom_op("psaq::similarity_density", mutates_args=())
def _density(packed: Tensor, sizes: Sequence[int], grid: Tensor, bandwidth: float, backend: str) -> Tensor:
    shapes = layer_shapes(sizes)
    if not shapes[0].images:
        return grid.new_empty(len(shapes), 0, len(grid))
    return _implementation(backend).forward(packed, shapes, grid, bandwidth)


@torch.library.custom_op("psaq::similarity_density_backward", mutates_args=())
def _density_backward(
    gradient: Tensor, packed: Tensor, sizes: Sequence[int], grid: Tensor, bandwidth: float, backend: str
) -> Tensor:
    shapes = layer_shapes(sizes)
    if not shapes[0].images:
        return torch.empty_like(packed)
    return _implementation(backend).backward(gradient.contiguous(), packed, shapes, grid, bandwidth)


@_density.register_fake
def _(packed: Tensor, sizes: Sequence[int], grid: Tensor, bandwidth: float, backend: str) -> Tensor:
    return grid.new_empty(len(sizes) // 4, sizes[0], grid.shape[0])


@_density_backward.register_fake
def _(gradient: Tensor, packed: Tensor, sizes: Sequence[int], grid: Tensor, bandwidth: float, backend: str) -> Tensor:
    return torch.empty_like(packed)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    packed, ctx.sizes, grid, ctx.bandwidth, ctx.backend = inputs
    ctx.save_for_backward(packed, grid)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    packed, grid = ctx.saved_tensors
    features = _density_backward(gradient, packed, ctx.sizes, grid, ctx.bandwidth, ctx.backend)
    return features, None, None, None, None


_density.register_autograd(_differentiate, setup_context=_save)


def _implementation(backend: str) -> ModuleType:
    return density_torch if backend == "torch" else importlib.import_module("psaq_kernels.density_triton")

"""Patch-similarity density in Triton: three launches forward and three backward for all layers of a model."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from psaq_kernels import density_launch, tuning
from psaq_kernels.density_cells import Cells
from psaq_kernels.density_configs import density_problem
from psaq_kernels.density_layout import DeviceLayout, LayerShape
from psaq_kernels.density_tunables import CENTER, COUNT, GRADIENT, SMOOTH, TABLE
from psaq_kernels.tunable import Config, Tunable

WORKSPACE_BYTES = 1 << 26  # for the cells, or the tables, of as many images as fit

Packed = Float[Tensor, "elements"]


def forward(
    packed: Packed, shapes: Sequence[LayerShape], grid: Float32[Tensor, "grid"], bandwidth: float
) -> Float32[Tensor, "layers images grid"]:
    """The density of each layer's patch similarities, per image."""
    with _on_device(packed.device):
        to_center, to_count, to_smooth = _configs(packed, shapes, CENTER, COUNT, SMOOTH)
        centered = density_launch.center(packed, shapes, to_center)
        layout, cells = centered.layout, Cells(bandwidth)
        density = packed.new_empty(layout.layers, layout.images, len(grid), dtype=torch.float32)
        for first, images in _image_steps(layout, layout.slots * cells.count * 8):
            counts = packed.new_zeros(images * layout.slots, cells.count, dtype=torch.int64)
            density_launch.count(centered, counts, first, images, cells, to_count)
            density_launch.smooth(centered, counts, grid, density, first, images, cells, to_smooth)
    return density


def backward(
    gradient: Float32[Tensor, "layers images grid"],
    packed: Packed,
    shapes: Sequence[LayerShape],
    grid: Float32[Tensor, "grid"],
    bandwidth: float,
) -> Packed:
    """The gradient with respect to the packed features, given the one with respect to the density."""
    with _on_device(packed.device):
        to_center, to_tabulate, to_differentiate = _configs(packed, shapes, CENTER, TABLE, GRADIENT)
        centered = density_launch.center(packed, shapes, to_center)
        layout, nodes = centered.layout, density_launch.table_nodes(bandwidth)
        out = torch.empty_like(packed)
        for first, images in _image_steps(layout, layout.layers * nodes * 8):
            table = gradient.new_empty(layout.layers, images, nodes, 2)
            density_launch.tabulate(centered, gradient, grid, table, first, images, bandwidth, to_tabulate)
            density_launch.differentiate(centered, packed, table, out, first, images, to_differentiate)
    return out


def _configs(packed: Packed, shapes: Sequence[LayerShape], *kernels: Tunable) -> list[Config]:
    problem = density_problem(shapes, str(packed.dtype).removeprefix("torch."))
    return [tuning.configuration(kernel, problem, packed.device) for kernel in kernels]


def _image_steps(layout: DeviceLayout, bytes_per_image: int) -> Iterator[tuple[int, int]]:
    """(first image, number of images) of runs whose workspace stays within bounds."""
    step = max(1, WORKSPACE_BYTES // bytes_per_image)
    return ((first, min(step, layout.images - first)) for first in range(0, layout.images, step))


def _on_device(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

"""Patch-similarity density in Triton: five launches forward and backward for all layers of a model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import triton
from jaxtyping import Float, Float32, Int32, Int64
from torch import Tensor

from psaq_kernels import density_configs, tuning
from psaq_kernels.density_cells import REACH, Cells
from psaq_kernels.density_kernels import (
    _center_kernel,
    _count_kernel,
    _gradient_kernel,
    _smooth_kernel,
    _table_kernel,
)
from psaq_kernels.density_layout import DeviceLayout, LayerShape
from psaq_kernels.devices import DeviceLimits
from psaq_kernels.tunable import CompileRequest, Config, MachineRates, Problem, Tunable, Workload

TABLE_NODES_PER_BANDWIDTH = 16  # of the cubic Hermite table of dLoss/dΓ: off by 4e-7 of its scale
WORKSPACE_BYTES = 1 << 26  # for the cells, or the tables, of as many images as fit
CENTER_TILE = 4096  # entries
GRID_BLOCK, CELL_BLOCK, NODE_BLOCK = 16, 128, 32

Packed = Float[Tensor, "elements"]


@dataclass(frozen=True)
class Centered:
    """The features of all layers as unit vectors less their window's mean."""

    layout: DeviceLayout
    offset: Float32[Tensor, "elements"]
    half: Float32[Tensor, "rows"]  # half the offset's squared length
    inverse_norm: Float32[Tensor, "rows"]
    finite: Int32[Tensor, "layers images"]

    def config(self, tunable: Tunable, dtype: torch.dtype) -> Config:
        problem = density_configs.density_problem(self.layout.shapes, _name(dtype))
        return tuning.configuration(tunable, problem, self.offset.device)


def forward(
    packed: Packed, shapes: Sequence[LayerShape], grid: Float32[Tensor, "grid"], bandwidth: float
) -> Float32[Tensor, "layers images grid"]:
    """The density of each layer's patch similarities, per image."""
    with _on_device(packed.device):
        centered = center(packed, shapes)
        layout, cells, config = centered.layout, Cells(bandwidth), centered.config(COUNT, packed.dtype)
        density = packed.new_empty(layout.layers, layout.images, len(grid), dtype=torch.float32)
        for first, images in _image_steps(layout, layout.slots * cells.count * 8):
            counts = packed.new_zeros(images * layout.slots, cells.count, dtype=torch.int64)
            count(centered, counts, first, images, cells, config)
            smooth(centered, counts, grid, density, first, images, cells)
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
        centered = center(packed, shapes)
        layout, config = centered.layout, centered.config(GRADIENT, packed.dtype)
        nodes = int(REACH * TABLE_NODES_PER_BANDWIDTH / bandwidth) + 2
        out = torch.empty_like(packed)
        for first, images in _image_steps(layout, layout.layers * nodes * 8):
            table = gradient.new_empty(layout.layers, images, nodes, 2)
            tabulate(centered, gradient, grid, table, first, images, bandwidth)
            differentiate(centered, packed, table, out, first, images, config)
    return out


# One launch each ------------------------------------------------------------------------------------------------------


def center(packed: Packed, shapes: Sequence[LayerShape]) -> Centered:
    """Normalise every patch and subtract its window's mean."""
    layout = DeviceLayout.of(tuple(shapes), packed.device)
    half, inverse_norm = packed.new_empty(2, layout.rows, dtype=torch.float32)
    offset = torch.empty_like(packed, dtype=torch.float32)
    finite = packed.new_ones(layout.layers, layout.images, dtype=torch.int32)
    block_d = max(16, triton.next_power_of_2(max(shape.channels for shape in shapes)))
    grid = (max(shape.windows for shape in shapes), layout.images, layout.layers)
    tile = {"BLOCK_M": max(1, CENTER_TILE // block_d), "BLOCK_D": block_d}
    _center_kernel[grid](packed, layout.table, offset, half, inverse_norm, finite, **tile)
    return Centered(layout, offset, half, inverse_norm, finite)


def count(
    centered: Centered, counts: Int64[Tensor, "slots cells"], first: int, images: int, cells: Cells, config: Config
) -> None:
    """Count the distances of ``images`` images, from image ``first`` on, into ``counts``."""
    layout = centered.layout
    tiles = max(shape.windows * _blocks(shape, config) for shape in layout.shapes)
    _count_kernel[(tiles, images, layout.layers)](
        centered.offset,
        centered.half,
        layout.table,
        counts,
        first,
        cells.count,
        cells.per_unit,
        ALIGNMENT=layout.alignment,
        **_launch(config),
    )


def smooth(
    centered: Centered,
    counts: Int64[Tensor, "slots cells"],
    grid: Float32[Tensor, "grid"],
    density: Float32[Tensor, "layers all_images grid"],
    first: int,
    images: int,
    cells: Cells,
) -> None:
    """Turn the counts of ``images`` images into their densities."""
    layout = centered.layout
    _smooth_kernel[(triton.cdiv(len(grid), GRID_BLOCK), images, layout.layers)](
        counts,
        layout.table,
        grid.contiguous(),
        centered.finite,
        density,
        first,
        layout.images,
        len(grid),
        cells.count,
        cells.per_unit,
        1 / cells.bandwidth,
        BLOCK_G=GRID_BLOCK,
        BLOCK_C=CELL_BLOCK,
    )


def tabulate(
    centered: Centered,
    gradient: Float32[Tensor, "layers all_images grid"],
    grid: Float32[Tensor, "grid"],
    table: Float32[Tensor, "layers images nodes two"],
    first: int,
    images: int,
    bandwidth: float,
) -> None:
    """Tabulate dLoss/dΓ over the distance, for ``images`` images from image ``first`` on."""
    layout, nodes = centered.layout, table.shape[2]
    _table_kernel[(triton.cdiv(nodes, NODE_BLOCK), images, layout.layers)](
        gradient,
        layout.table,
        grid.contiguous(),
        table,
        first,
        layout.images,
        len(grid),
        nodes,
        REACH / (nodes - 1),
        1 / bandwidth,
        BLOCK_V=NODE_BLOCK,
        BLOCK_G=GRID_BLOCK,
    )


def differentiate(
    centered: Centered,
    packed: Packed,
    table: Float32[Tensor, "layers images nodes two"],
    out: Packed,
    first: int,
    images: int,
    config: Config,
) -> None:
    """Write the features' gradient for ``images`` images, from image ``first`` on, into ``out``."""
    layout, nodes = centered.layout, table.shape[2]
    channels = int(config.constants["BLOCK_E"])
    tiles = max(s.windows * _blocks(s, config) * triton.cdiv(s.channels, channels) for s in layout.shapes)
    _gradient_kernel[(tiles, images, layout.layers)](
        centered.offset,
        centered.half,
        centered.inverse_norm,
        centered.finite,
        packed,
        layout.table,
        table.view(torch.int64),
        out,
        first,
        layout.images,
        nodes,
        (nodes - 1) / REACH,
        ALIGNMENT=layout.alignment,
        **_launch(config),
    )


def _blocks(shape: LayerShape, config: Config) -> int:
    return triton.cdiv(shape.patches, int(config.constants["BLOCK_M"]))


def _launch(config: Config) -> dict[str, int | str]:
    return {**config.constants, "num_warps": config.num_warps, "num_stages": config.num_stages}


def _image_steps(layout: DeviceLayout, bytes_per_image: int) -> Iterator[tuple[int, int]]:
    """(first image, number of images) of runs whose workspace stays within bounds."""
    step = max(1, WORKSPACE_BYTES // bytes_per_image)
    return ((first, min(step, layout.images - first)) for first in range(0, layout.images, step))


def _on_device(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# For the tuner and the ahead-of-time check ----------------------------------------------------------------------------

_TRITON_TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_EXAMPLE_BANDWIDTH = 0.01


class _DensityKernel(Tunable):
    """What both heavy kernels share."""

    source_modules = ("psaq_kernels.density_kernels",)
    is_gradient: bool

    def problems(self, workload: Workload) -> list[Problem]:
        if not workload.features:
            return []
        shapes = [LayerShape(*sizes) for sizes in workload.features]
        return [density_configs.density_problem(shapes, "float32")]

    def bucket(self, problem: Problem) -> str:
        return density_configs.bucket(problem)

    def default(self, problem: Problem, limits: DeviceLimits) -> Config:
        return density_configs.default(problem, limits, self.is_gradient)

    def candidates(self, problem: Problem, limits: DeviceLimits) -> list[Config]:
        return density_configs.candidates(problem, limits, self.is_gradient)

    def bound(self, problem: Problem, rates: MachineRates) -> float:
        return density_configs.bound(problem, rates, self.is_gradient)


class _Count(_DensityKernel):
    name = "similarity_density.forward"
    is_gradient = False

    def prepare(self, problem: Problem, device: torch.device) -> Callable[[Config], None]:
        packed, centered = _example(problem, device)
        cells = Cells(_EXAMPLE_BANDWIDTH)
        counts = packed.new_zeros(centered.layout.images * centered.layout.slots, cells.count, dtype=torch.int64)
        return lambda config: count(centered, counts, 0, centered.layout.images, cells, config)

    def compile_request(self, problem: Problem, config: Config) -> CompileRequest:
        pointers = {"offset_ptr": "*fp32", "half_ptr": "*fp32", "layout_ptr": "*i64", "cells_ptr": "*i64"}
        sizes = {"first_image": "i32", "cells": "i32", "cells_per_unit": "fp32"}
        return _request(_count_kernel, pointers, sizes, config, aligned=("cells",))


class _Gradient(_DensityKernel):
    name = "similarity_density.backward"
    is_gradient = True

    def prepare(self, problem: Problem, device: torch.device) -> Callable[[Config], None]:
        packed, centered = _example(problem, device)
        nodes = int(REACH * TABLE_NODES_PER_BANDWIDTH / _EXAMPLE_BANDWIDTH) + 2
        table = torch.randn(centered.layout.layers, centered.layout.images, nodes, 2, device=device)
        out = torch.empty_like(packed)
        return lambda config: differentiate(centered, packed, table, out, 0, centered.layout.images, config)

    def compile_request(self, problem: Problem, config: Config) -> CompileRequest:
        feature = f"*{_TRITON_TYPES[str(problem['dtype'])]}"
        pointers = {
            **dict.fromkeys(("offset_ptr", "half_ptr", "inverse_norm_ptr"), "*fp32"),
            "finite_ptr": "*i32",
            "features_ptr": feature,
            "layout_ptr": "*i64",
            "table_ptr": "*i64",
            "gradient_ptr": feature,
        }
        sizes = {**dict.fromkeys(("first_image", "all_images", "nodes"), "i32"), "nodes_per_unit": "fp32"}
        return _request(_gradient_kernel, pointers, sizes, config)


def _request(
    kernel: object,
    pointers: dict[str, str],
    sizes: dict[str, str],
    config: Config,
    aligned: tuple[str, ...] = (),
) -> CompileRequest:
    constants = {**config.constants, "ALIGNMENT": 16}
    return CompileRequest(
        kernel, {**pointers, **sizes}, constants, config.num_warps, config.num_stages, (*pointers, *aligned)
    )


def _example(problem: Problem, device: torch.device) -> tuple[Packed, Centered]:
    """Features like noise's, whose similarities crowd in few cells: the hardest case for the counting."""
    shapes = density_configs.problem_shapes(problem)
    shared = torch.randn(shapes[0].channels, device=device)
    packed = torch.cat([(shared + 0.3 * torch.randn(shape.sizes, device=device)).flatten() for shape in shapes])
    packed = packed.to(getattr(torch, str(problem["dtype"])))
    return packed, center(packed, shapes)


COUNT = _Count()
GRADIENT = _Gradient()
TUNABLES = (COUNT, GRADIENT)

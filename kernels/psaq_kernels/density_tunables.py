"""The density's kernels as the tuner and the ahead-of-time check see them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from psaq_kernels import density_configs, density_kernels, density_launch
from psaq_kernels.density_cells import Cells
from psaq_kernels.density_configs import problem_shapes
from psaq_kernels.density_launch import Centered
from psaq_kernels.density_layout import LayerShape
from psaq_kernels.devices import DeviceLimits
from psaq_kernels.machine_model import Model
from psaq_kernels.tunable import CompileRequest, Config, MachineRates, Problem, Tunable, Workload

EXAMPLE_BANDWIDTH, EXAMPLE_POINTS = 0.01, 320
TRITON_TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
FEATURES = "*features"  # stands for a pointer to the features' own type


@dataclass(frozen=True, eq=False)
class DensityKernel(Tunable):
    """One of the density's kernels: what it takes, how it may be launched, and on what it is timed."""

    name: str
    kernel: Any
    arguments: Mapping[str, str]  # name -> Triton type
    configs: Callable[[Problem, DeviceLimits], list[Config]]  # the default first
    example: Callable[["_Example"], Callable[[Config], object]]
    reckoned: Callable[[Config, Problem, Model], float]  # seconds
    cost: Callable[[Problem], tuple[float, float]]  # bytes moved, floating-point operations
    source_modules = ("psaq_kernels.density_kernels", "psaq_kernels.density_launch")

    def problems(self, workload: Workload) -> list[Problem]:
        shapes = [LayerShape(*sizes) for sizes in workload.features]
        return [density_configs.density_problem(shapes, "float32")] if shapes else []

    def bucket(self, problem: Problem) -> str:
        return density_configs.bucket(problem)

    def default(self, problem: Problem, limits: DeviceLimits) -> Config:
        return self.configs(problem, limits)[0]

    def candidates(self, problem: Problem, limits: DeviceLimits) -> list[Config]:
        return self.configs(problem, limits)

    def reckon(self, config: Config, problem: Problem, limits: DeviceLimits) -> float:
        return self.reckoned(config, problem, Model.of(limits))

    def prepare(self, problem: Problem, device: torch.device) -> Callable[[Config], object]:
        return self.example(_Example.of(problem, device))

    def bound(self, problem: Problem, rates: MachineRates) -> float:
        moved, operations = self.cost(problem)
        return max(moved / rates.bytes_per_second, operations / rates.flops_per_second["float32"])

    def compile_request(self, problem: Problem, config: Config) -> CompileRequest:
        feature_type = f"*{TRITON_TYPES[str(problem['dtype'])]}"
        signature = {name: feature_type if kind == FEATURES else kind for name, kind in self.arguments.items()}
        constants: dict[str, int | str | float | bool | None] = dict(config.constants)
        if "ALIGNMENT" in self.kernel.arg_names:
            constants["ALIGNMENT"] = math.gcd(16, int(problem["channels"]))
        pointers = [name for name, kind in signature.items() if kind.startswith("*")]
        return CompileRequest(self.kernel, signature, constants, config.num_warps, config.num_stages, pointers)


@dataclass(frozen=True)
class _Example:
    """Features like noise's, whose similarities crowd in few cells: the hardest case for the counting."""

    packed: Tensor
    centered: Centered

    @staticmethod
    def of(problem: Problem, device: torch.device) -> "_Example":
        shapes = problem_shapes(problem)
        shared = torch.randn(shapes[0].channels, device=device)
        parts = [(shared + 0.3 * torch.randn(shape.sizes, device=device)).flatten() for shape in shapes]
        packed = torch.cat(parts).to(getattr(torch, str(problem["dtype"])))
        config = density_configs.center_configs(problem, density_configs.MODEST)[0]
        return _Example(packed, density_launch.center(packed, shapes, config))

    @property
    def images(self) -> int:
        return self.centered.layout.images

    @property
    def grid(self) -> Tensor:
        return torch.linspace(-1, 1, EXAMPLE_POINTS, device=self.packed.device)

    @property
    def per_grid(self) -> Tensor:
        layout = self.centered.layout
        return torch.randn(layout.layers, layout.images, EXAMPLE_POINTS, device=self.packed.device)

    @property
    def counts(self) -> Tensor:
        rows = self.centered.layout.slots * self.images
        return self.packed.new_zeros(rows, Cells(EXAMPLE_BANDWIDTH).count, dtype=torch.int64)

    @property
    def table(self) -> Tensor:
        nodes = density_launch.table_nodes(EXAMPLE_BANDWIDTH)
        return torch.randn(self.centered.layout.layers, self.images, nodes, 2, device=self.packed.device)


def _center(example: _Example) -> Callable[[Config], object]:
    shapes = example.centered.layout.shapes
    return lambda config: density_launch.center(example.packed, shapes, config)


def _count(example: _Example) -> Callable[[Config], object]:
    counts, cells = example.counts, Cells(EXAMPLE_BANDWIDTH)
    return lambda config: density_launch.count(example.centered, counts, 0, example.images, cells, config)


def _smooth(example: _Example) -> Callable[[Config], object]:
    counts, cells, grid, out = example.counts, Cells(EXAMPLE_BANDWIDTH), example.grid, example.per_grid
    return lambda config: density_launch.smooth(example.centered, counts, grid, out, 0, example.images, cells, config)


def _tabulate(example: _Example) -> Callable[[Config], object]:
    gradient, grid, table, h = example.per_grid, example.grid, example.table, EXAMPLE_BANDWIDTH
    return lambda config: density_launch.tabulate(example.centered, gradient, grid, table, 0, example.images, h, config)


def _differentiate(example: _Example) -> Callable[[Config], object]:
    table, out = example.table, torch.empty_like(example.packed)
    return lambda config: density_launch.differentiate(
        example.centered, example.packed, table, out, 0, example.images, config
    )


OFFSETS = {"offset_ptr": "*fp32", "half_ptr": "*fp32"}
LAYOUT = {"layout_ptr": "*i64"}
IMAGES = {"first_image": "i32", "all_images": "i32"}
CELLS = {"cells": "i32", "cells_per_unit": "fp32"}

CENTER = DensityKernel(
    "similarity_density.center",
    density_kernels._center_kernel,
    {"features_ptr": FEATURES, **LAYOUT, **OFFSETS, "inverse_norm_ptr": "*fp32", "finite_ptr": "*i32"},
    density_configs.center_configs,
    _center,
    density_configs.center_reckoned,
    density_configs.center_cost,
)
COUNT = DensityKernel(
    "similarity_density.count",
    density_kernels._count_kernel,
    {**OFFSETS, **LAYOUT, "cells_ptr": "*i64", "first_image": "i32", **CELLS},
    density_configs.count_configs,
    _count,
    density_configs.count_reckoned,
    density_configs.count_cost,
)
SMOOTH = DensityKernel(
    "similarity_density.smooth",
    density_kernels._smooth_kernel,
    {
        "cells_ptr": "*i64",
        **LAYOUT,
        "grid_ptr": "*fp32",
        "finite_ptr": "*i32",
        "density_ptr": "*fp32",
        **IMAGES,
        "points": "i32",
        **CELLS,
        "inverse_bandwidth": "fp32",
    },
    density_configs.smooth_configs,
    _smooth,
    density_configs.grid_reckoned,
    density_configs.smooth_cost,
)
TABLE = DensityKernel(
    "similarity_density.table",
    density_kernels._table_kernel,
    {
        "gradient_ptr": "*fp32",
        **LAYOUT,
        "grid_ptr": "*fp32",
        "table_ptr": "*fp32",
        **IMAGES,
        "points": "i32",
        "nodes": "i32",
        "interval": "fp32",
        "inverse_bandwidth": "fp32",
    },
    density_configs.table_configs,
    _tabulate,
    density_configs.grid_reckoned,
    density_configs.table_cost,
)
GRADIENT = DensityKernel(
    "similarity_density.gradient",
    density_kernels._gradient_kernel,
    {
        **OFFSETS,
        "inverse_norm_ptr": "*fp32",
        "finite_ptr": "*i32",
        "features_ptr": FEATURES,
        **LAYOUT,
        "table_ptr": "*i64",
        "gradient_ptr": FEATURES,
        **IMAGES,
        "nodes": "i32",
        "nodes_per_unit": "fp32",
    },
    density_configs.gradient_configs,
    _differentiate,
    density_configs.gradient_reckoned,
    density_configs.gradient_cost,
)
TUNABLES = (CENTER, COUNT, SMOOTH, TABLE, GRADIENT)

"""One launch each: the density's Triton kernels over all layers and a run of images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
from jaxtyping import Float, Float32, Int32, Int64
from torch import Tensor

from psaq_kernels.density_cells import REACH, Cells
from psaq_kernels.density_kernels import (
    _center_kernel,
    _count_kernel,
    _gradient_kernel,
    _smooth_kernel,
    _table_kernel,
)
from psaq_kernels.density_layout import DeviceLayout, LayerShape
from psaq_kernels.tunable import Config

TABLE_NODES_PER_BANDWIDTH = 16  # of the cubic Hermite table of dLoss/dΓ: off by 4e-7 of its scale

Packed = Float[Tensor, "elements"]
Counts = Int64[Tensor, "slots cells"]
Table = Float32[Tensor, "layers images nodes two"]


@dataclass(frozen=True)
class Centered:
    """The features of all layers as unit vectors less their window's mean."""

    layout: DeviceLayout
    offset: Float32[Tensor, "elements"]
    half: Float32[Tensor, "rows"]  # half the offset's squared length
    inverse_norm: Float32[Tensor, "rows"]
    finite: Int32[Tensor, "layers images"]


def table_nodes(bandwidth: float) -> int:
    return int(REACH * TABLE_NODES_PER_BANDWIDTH / bandwidth) + 2


def center(packed: Packed, shapes: Sequence[LayerShape], config: Config) -> Centered:
    """Normalise every patch and subtract its window's mean."""
    layout = DeviceLayout.of(tuple(shapes), packed.device)
    half, inverse_norm = packed.new_empty(2, layout.rows, dtype=torch.float32)
    offset = torch.empty_like(packed, dtype=torch.float32)
    finite = packed.new_ones(layout.layers, layout.images, dtype=torch.int32)
    grid = (max(shape.windows for shape in shapes), layout.images, layout.layers)
    _center_kernel[grid](packed, layout.table, offset, half, inverse_norm, finite, **_options(config))
    return Centered(layout, offset, half, inverse_norm, finite)


def count(centered: Centered, counts: Counts, first: int, images: int, cells: Cells, config: Config) -> None:
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
        **_options(config),
    )


def smooth(
    centered: Centered,
    counts: Counts,
    grid: Float32[Tensor, "grid"],
    density: Float32[Tensor, "layers all_images grid"],
    first: int,
    images: int,
    cells: Cells,
    config: Config,
) -> None:
    """Turn the counts of ``images`` images into their densities."""
    layout = centered.layout
    tiles = triton.cdiv(len(grid), int(config.constants["BLOCK_G"]))
    _smooth_kernel[(tiles, images, layout.layers)](
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
        **_options(config),
    )


def tabulate(
    centered: Centered,
    gradient: Float32[Tensor, "layers all_images grid"],
    grid: Float32[Tensor, "grid"],
    table: Table,
    first: int,
    images: int,
    bandwidth: float,
    config: Config,
) -> None:
    """Tabulate dLoss/dΓ over the distance, for ``images`` images from image ``first`` on."""
    layout, nodes = centered.layout, table.shape[2]
    tiles = triton.cdiv(nodes, int(config.constants["BLOCK_V"]))
    _table_kernel[(tiles, images, layout.layers)](
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
        **_options(config),
    )


def differentiate(
    centered: Centered,
    packed: Packed,
    table: Table,
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
        **_options(config),
    )


def _blocks(shape: LayerShape, config: Config) -> int:
    return triton.cdiv(shape.patches, int(config.constants["BLOCK_M"]))


def _options(config: Config) -> dict[str, int | str | bool]:
    """The fusion of products with sums is asked for: what Triton does by itself changes with its version."""
    launch = {"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": True}
    return {**config.constants, **launch}

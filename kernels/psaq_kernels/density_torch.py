"""Patch-similarity density in plain torch, for CPUs and devices without Triton.

Γ is formed block by block in a workspace of fixed size, counted into cells (see `density_cells`) and forgotten;
the backward pass forms it again, and looks dLoss/dΓ, which depends on Γ's value alone, up in a table.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from psaq_kernels.density_cells import CELLS_PER_INTERVAL, ORDERS, Cells, corner_weights, kernel_derivatives

BLOCK = 1 << 17  # similarities formed at once: about 2 MB of workspace, which stays in the cores' caches
KERNEL_BLOCK = 1 << 20  # kernel values evaluated at once

Features = Float[Tensor, "images windows patches channels"]
Index = Int[Tensor, "images similarities"]
Fraction = Float[Tensor, "images similarities"]


def forward(
    layers: Sequence[Features], grid: Float[Tensor, "grid"], bandwidth: float
) -> Float[Tensor, "layers images grid"]:
    """The density of each layer's patch similarities, per image."""
    cells = Cells(bandwidth)
    workspace = _Workspace(layers)
    nodes = torch.stack([_node_sums(features, cells, workspace) for features in layers])
    return _smooth(nodes, grid, cells).clamp_min(0)


def backward(
    gradient: Float[Tensor, "layers images grid"],
    layers: Sequence[Features],
    grid: Float[Tensor, "grid"],
    bandwidth: float,
) -> list[Features]:
    """The gradient with respect to each layer's features, given the one with respect to the density."""
    cells = Cells(bandwidth)
    workspace = _Workspace(layers)
    tables = _slope_at_nodes(gradient, grid, cells)
    return [_feature_gradient(*layer, cells, workspace) for layer in zip(layers, tables, strict=True)]


def similarity_extremes(layers: Sequence[Features]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The least and the greatest similarity over all layers, images and windows."""
    workspace = _Workspace(layers)
    extremes = [
        torch.stack(torch.aminmax(workspace.similarity(block)))
        for features in layers
        for images in _chunks(features, 1)
        for block in _blocks(_normalize(features[images]).unit)
    ]
    lowest, highest = torch.stack(extremes).unbind(1)
    return lowest.amin().clamp(-1, 1), highest.amax().clamp(-1, 1)


# Forward: features -> counts per cell -> sums per node -> density --------------------------------------------


def _node_sums(features: Features, cells: Cells, workspace: "_Workspace") -> Float[Tensor, "images nodes orders"]:
    """The kernel's interpolation weights summed over an image's similarities, divided by their number."""
    _, windows, patches, _ = features.shape
    sums = [_chunk_node_sums(features[chunk], cells, workspace) for chunk in _chunks(features, cells.count)]
    return torch.cat(sums) / (windows * patches**2)


def _chunk_node_sums(features: Features, cells: Cells, workspace: "_Workspace") -> Float[Tensor, "images nodes orders"]:
    normalized = _normalize(features)
    sums = features.new_zeros(2, features.shape[0], cells.count, dtype=torch.float64)
    for block in _blocks(normalized.unit):
        _count(block, sums, cells, workspace)
    corners = torch.einsum(
        "m b i c, m c k -> b i k",
        rearrange(_central_moments(*sums), "m b (i c) -> m b i c", c=CELLS_PER_INTERVAL),
        corner_weights(features.device),
    )
    nodes = corners.new_zeros(features.shape[0], cells.nodes, ORDERS)
    nodes[:, :-1] += corners[..., :ORDERS]
    nodes[:, 1:] += corners[..., ORDERS:]
    return nodes.masked_fill_(~normalized.finite[:, None, None], torch.nan)


def _count(block: "_Block", sums: Float[Tensor, "two images cells"], cells: Cells, workspace: "_Workspace") -> None:
    """Add each similarity to its cell: one to the number, its height in the cell (0 to 1) to the sum."""
    index, height = workspace.locate(block, sums.shape[1], cells)
    height = workspace.double(height)
    sums[0].scatter_add_(1, index, height.new_ones(()).expand_as(height))
    sums[1].scatter_add_(1, index, height)


def _central_moments(
    number: Float[Tensor, "images cells"], height: Float[Tensor, "images cells"]
) -> Float[Tensor, "orders images cells"]:
    """Moments about the cell's centre; the second is that of similarities which all sit at their mean."""
    first = height - number / 2
    return torch.stack((number, first, first**2 / number.clamp_min(1)))


def _smooth(
    nodes: Float[Tensor, "layers images nodes orders"], grid: Float[Tensor, "grid"], cells: Cells
) -> Float[Tensor, "layers images grid"]:
    density = [
        torch.einsum("l b n k, k n g -> l b g", nodes, kernel_derivatives(points, cells, first=0))
        for points in grid.double().split(_grid_step(cells))
    ]
    return torch.cat(density, -1).float()


def _grid_step(cells: Cells) -> int:
    return max(1, KERNEL_BLOCK // cells.nodes)


# Backward: density's gradient -> dLoss/dΓ per node -> per cell -> per similarity -> features ------------------


def _slope_at_nodes(
    gradient: Float[Tensor, "layers images grid"], grid: Float[Tensor, "grid"], cells: Cells
) -> Float[Tensor, "layers images nodes orders"]:
    """dLoss/dΓ for a similarity at each node, its slope and curvature per interval; the 1/N² is left out."""
    points, weights = grid.double().split(_grid_step(cells)), gradient.double().split(_grid_step(cells), -1)
    table = gradient.new_zeros(*gradient.shape[:2], cells.nodes, ORDERS, dtype=torch.float64)
    for x, weight in zip(points, weights, strict=True):
        table += torch.einsum("l b g, k n g -> l b n k", weight, kernel_derivatives(x, cells, first=1))
    return table


def _feature_gradient(
    features: Features, table: Float[Tensor, "images nodes orders"], cells: Cells, workspace: "_Workspace"
) -> Features:
    gradient = torch.empty_like(features, memory_format=torch.contiguous_format)
    for chunk in _chunks(features, cells.count):
        gradient[chunk] = _chunk_gradient(features[chunk], table[chunk], cells, workspace)
    return gradient


def _chunk_gradient(
    features: Features, table: Float[Tensor, "images nodes orders"], cells: Cells, workspace: "_Workspace"
) -> Features:
    """2/‖x_i‖ (1 − x̂_i x̂_iᵀ) Σ_j dΓ_ij (x̂_j − x̂_i).

    The projection makes −x̂_i free to add; with it the sum does not cancel where all features are alike.
    """
    _, windows, patches, _ = features.shape
    normalized = _normalize(features, torch.float64)
    offset = (normalized.unit - normalized.unit.mean(2, keepdim=True)).float()
    cell_table = _expand(table, cells).div_(windows * patches**2).float()
    attraction = _attraction(normalized.unit.float(), offset, cell_table, cells, workspace)
    along = (attraction * normalized.unit).sum(-1, keepdim=True) * normalized.unit
    gradient = 2 * normalized.inverse_norm * (attraction - along)
    return gradient.masked_fill_(~normalized.finite[:, None, None, None], torch.nan)


def _attraction(
    unit: Features,
    offset: Features,
    table: Float[Tensor, "two images cells"],
    cells: Cells,
    workspace: "_Workspace",
) -> Features:
    """Σ_j dΓ_ij (offset_j − offset_i)."""
    attraction = torch.empty_like(offset)
    offsets, sums = offset.flatten(0, 1), attraction.flatten(0, 1)
    for block in _blocks(unit):
        index, fraction = workspace.locate(block, unit.shape[0], cells)
        weight = workspace.interpolate(table, index, fraction).view(block.shape)
        windows, _ = block.place
        sums[block.place] = weight @ offsets[windows] - weight.sum(-1, keepdim=True) * offsets[block.place]
    return attraction


def _expand(table: Float[Tensor, "images nodes orders"], cells: Cells) -> Float[Tensor, "two images cells"]:
    """dLoss/dΓ at the lower edge of every cell, and its increase across the cell."""
    corners = torch.cat((table[:, :-1], table[:, 1:]), -1)
    weights = corner_weights(table.device)[:2]
    centre, increase = rearrange(torch.einsum("b i k, m c k -> m b i c", corners, weights), "m b i c -> m b (i c)")
    return torch.stack((centre - increase / 2, increase))


# Normalisation -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Normalized:
    unit: Float[Tensor, "images windows patches channels"]  # a zero vector stays zero; so does a NaN image
    inverse_norm: Float[Tensor, "images windows patches 1"]  # 0 for a zero vector
    finite: Bool[Tensor, "images"]


def _normalize(features: Features, dtype: torch.dtype = torch.float32) -> _Normalized:
    features = features.to(dtype)
    largest = features.abs().amax(-1, keepdim=True)
    finite = largest.isfinite().flatten(1).all(1)
    scaled = features / torch.where(largest > 0, largest, 1)  # whose squares neither overflow nor vanish
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    unit = (scaled / torch.where(norm > 0, norm, 1)).masked_fill_(~finite[:, None, None, None], 0)
    return _Normalized(unit, torch.where(norm > 0, 1 / (norm * largest), 0), finite)


# Blocks of Γ -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Block:
    """The similarities of some patches (rows) of some windows with all patches (columns) of their window."""

    rows: Float[Tensor, "windows rows channels"]
    columns: Float[Tensor, "windows patches channels"]
    place: tuple[slice, slice]  # the windows and the rows among all

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self.rows.shape[:2], self.columns.shape[1])


def _chunks(features: Features, cells: int) -> Iterator[slice]:
    """Runs of images whose similarities, and whose cells, fit a block; one image where it alone does not."""
    images, windows, patches, _ = features.shape
    step = max(1, BLOCK // max(windows * patches**2, cells))
    return (slice(start, start + step) for start in range(0, images, step))


def _blocks(unit: Features) -> Iterator[_Block]:
    """All of Γ; more than one block only for a chunk of a single image."""
    patches = unit.shape[2]
    window_step = max(1, BLOCK // patches**2)
    row_step = max(1, min(patches, BLOCK // patches))
    for windows in _slices(unit.shape[0] * unit.shape[1], window_step):
        columns = unit.flatten(0, 1)[windows]
        for rows in _slices(patches, row_step):
            yield _Block(columns[:, rows], columns, (windows, rows))


def _slices(length: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, length, step))


class _Workspace:
    """Buffers for one block of similarities, allocated once: fresh memory costs more than the arithmetic."""

    def __init__(self, layers: Sequence[Features]):
        size = max(_block_size(features) for features in layers)
        device = layers[0].device
        self._similarity = torch.empty(size, device=device)
        self._index = torch.empty(size, dtype=torch.int64, device=device)
        self._value = torch.empty(size, device=device)
        self._slope = torch.empty(size, device=device)
        self._weight = torch.empty(size, dtype=torch.float64, device=device)

    def similarity(self, block: _Block) -> Float[Tensor, "windows rows patches"]:
        return torch.bmm(block.rows, block.columns.mT, out=_view(self._similarity, block.shape))

    def locate(self, block: _Block, images: int, cells: Cells) -> tuple[Index, Fraction]:
        """The cell of every similarity and the fraction of the cell that lies below it."""
        middle = block.rows.new_full((), cells.count / 2)
        position = _view(self._similarity, block.shape)
        torch.baddbmm(middle, block.rows, block.columns.mT, alpha=cells.per_unit, out=position)
        position = position.view(images, -1)
        index = _view(self._index, position.shape).copy_(position)
        return index, position.frac_()

    def double(self, fraction: Fraction) -> Float[Tensor, "images similarities"]:
        return _view(self._weight, fraction.shape).copy_(fraction)

    def interpolate(
        self, table: Float[Tensor, "two images cells"], index: Index, fraction: Fraction
    ) -> Float[Tensor, "images similarities"]:
        """A table of each cell's lower edge and increase, at every similarity."""
        value = torch.gather(table[0], 1, index, out=_view(self._value, index.shape))
        slope = torch.gather(table[1], 1, index, out=_view(self._slope, index.shape))
        return value.addcmul_(slope, fraction)


def _block_size(features: Features) -> int:
    images, windows, patches, _ = features.shape
    return min(images * windows * patches**2, max(BLOCK, patches))


def _view(buffer: Tensor, shape: Sequence[int]) -> Tensor:
    return buffer[: math.prod(shape)].view(*shape)

"""Patch-similarity density in plain torch, for CPUs and devices without Triton.

Distances u = 1 − Γ are formed block by block in a workspace of fixed size, counted into cells (see `density_cells`)
and forgotten; the backward pass forms them again, and looks dLoss/du, which depends on u's value alone, up in a table.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from psaq_kernels.density_cells import CELLS_PER_INTERVAL, ORDERS, Cells, corner_weights, kernel_derivatives
from psaq_kernels.density_layout import Features, LayerShape, unpack_runs
from psaq_kernels.density_workspace import BLOCK, Block, Workspace, borrow_workspace

KERNEL_BLOCK = 1 << 20  # kernel values evaluated at once
SAFE_NORMS = (1e-15, 1e15)  # whose squares are far from float32's limits

Packed = Float[Tensor, "elements"]
NodeTable = Float[Tensor, "images orders nodes"]


def forward(
    packed: Packed, shapes: Sequence[LayerShape], grid: Float[Tensor, "grid"], bandwidth: float
) -> Float[Tensor, "layers images grid"]:
    """The density of each layer's patch similarities, per image."""
    cells = Cells(bandwidth)
    with borrow_workspace(packed.device) as workspace:
        nodes = torch.cat([_node_sums(run, cells, workspace) for run in unpack_runs(packed, shapes)])
    density = _smooth(nodes, grid, cells).clamp_min_(0)
    return density.view(len(shapes), -1, len(grid))


def backward(
    gradient: Float[Tensor, "layers images grid"],
    packed: Packed,
    shapes: Sequence[LayerShape],
    grid: Float[Tensor, "grid"],
    bandwidth: float,
) -> Packed:
    """The gradient with respect to the packed features, given the one with respect to the density."""
    cells = Cells(bandwidth)
    runs = unpack_runs(packed, shapes)
    tables = _slope_at_nodes(gradient.flatten(0, 1), grid, cells).split([len(run) for run in runs])
    gradients = torch.empty_like(packed)
    with borrow_workspace(packed.device) as workspace:
        for run, table, out in zip(runs, tables, unpack_runs(gradients, shapes), strict=True):
            for chunk in _chunks(run, cells.count):
                out[chunk] = _chunk_gradient(run[chunk], table[chunk], cells, workspace)
    return gradients


def similarity_extremes(packed: Packed, shapes: Sequence[LayerShape]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The least and the greatest similarity over all layers, images and windows."""
    with borrow_workspace(packed.device) as workspace:
        extremes = [
            extreme
            for run in unpack_runs(packed, shapes)
            for chunk in _chunks(run, cells=1)
            for extreme in _chunk_extremes(run[chunk], workspace)
        ]
    lowest, highest = torch.stack(extremes).unbind(1)
    return lowest.amin().clamp_min(-1), highest.amax()


def _chunk_extremes(features: Features, workspace: Workspace) -> Iterator[Float[Tensor, "two"]]:
    normalized = _normalize(features)
    for block in _blocks(normalized):
        nearest, farthest = torch.aminmax(workspace.distances(block))
        extremes = 1 - torch.stack((farthest, nearest))
        yield torch.where(normalized.finite.all(), extremes, torch.nan)


# Forward: features -> counts per cell -> sums per node -> density -----------------------------------------------------


def _node_sums(features: Features, cells: Cells, workspace: Workspace) -> NodeTable:
    """The kernel's interpolation weights, averaged over an image's similarities."""
    samples = LayerShape(*features.shape).samples
    sums = [_chunk_node_sums(features[chunk], cells, workspace) for chunk in _chunks(features, cells.count)]
    return torch.cat(sums).div_(samples)


def _chunk_node_sums(features: Features, cells: Cells, workspace: Workspace) -> NodeTable:
    images = len(features)
    normalized = _normalize(features)
    number, height = features.new_zeros(2, images, cells.count, dtype=torch.float64)
    for block in _blocks(normalized):
        workspace.count(block, number, height, cells)
    corners = rearrange(_corner_sums(number, height), "(b i) k -> b k i", b=images)
    nodes = corners.new_zeros(images, ORDERS, cells.nodes)
    nodes[..., :-1] += corners[:, :ORDERS]
    nodes[..., 1:] += corners[:, ORDERS:]
    return nodes.masked_fill_(~normalized.finite[:, None, None], torch.nan)


def _corner_sums(
    number: Float[Tensor, "images cells"], height: Float[Tensor, "images cells"]
) -> Float[Tensor, "intervals corners"]:
    """What the distances give to the value, slope and curvature at both nodes of each interval.

    ``height`` is the sum of their heights in the cell, from 0 to 1. The second moment about the cell's centre is that
    of distances which all sit at their mean.
    """
    first = torch.sub(height, number, alpha=0.5).float().view(-1, CELLS_PER_INTERVAL)
    zeroth = number.float().view(-1, CELLS_PER_INTERVAL)
    second = first * first / zeroth.clamp_min(1)
    weights = corner_weights(number.device)
    return torch.addmm(torch.addmm(zeroth @ weights[0], first, weights[1]), second, weights[2])


def _smooth(nodes: NodeTable, grid: Float[Tensor, "grid"], cells: Cells) -> Float[Tensor, "images grid"]:
    density = [
        nodes.flatten(1) @ kernel_derivatives(points, cells, first=0).flatten(0, 1)
        for points in grid.split(_grid_step(cells))
    ]
    return torch.cat(density, -1)


def _grid_step(cells: Cells) -> int:
    return max(1, KERNEL_BLOCK // cells.nodes)


# Backward: density's gradient -> dLoss/du per node -> per cell -> per pair -> features --------------------------------


def _slope_at_nodes(gradient: Float[Tensor, "images grid"], grid: Float[Tensor, "grid"], cells: Cells) -> NodeTable:
    """dLoss/du for a distance at each node, its slope and curvature per interval; the 1/N² is left out."""
    table = gradient.new_zeros(len(gradient), ORDERS * cells.nodes)
    points, weights = grid.split(_grid_step(cells)), gradient.split(_grid_step(cells), -1)
    for x, weight in zip(points, weights, strict=True):
        table.addmm_(weight, kernel_derivatives(x, cells, first=1).flatten(0, 1).mT)
    return table.view(-1, ORDERS, cells.nodes)


def _chunk_gradient(features: Features, table: NodeTable, cells: Cells, workspace: Workspace) -> Features:
    """2/‖x_i‖ (1 − x̂_i x̂_iᵀ) Σ_j dLoss/dΓ_ij (x̂_j − x̂_i).

    The projection makes −x̂_i free to add; with it the sum does not cancel where all features are alike.
    """
    normalized = _normalize(features)
    samples = LayerShape(*features.shape).samples
    pull = _pull(normalized, _expand(table / -samples), cells, workspace)
    along = torch.linalg.vecdot(pull, normalized.unit).unsqueeze(-1)
    gradient = torch.addcmul(pull, along, normalized.unit, value=-1).mul_(2 * normalized.inverse_norm)
    return gradient.masked_fill_(~normalized.finite[:, None, None, None], torch.nan)


def _pull(
    normalized: "_Normalized", table: Float[Tensor, "two images cells"], cells: Cells, workspace: Workspace
) -> Features:
    """Σ_j dLoss/dΓ_ij (x̂_j − x̂_i)."""
    offset = normalized.offset.flatten(0, 1)
    pull = torch.empty_like(offset)
    for block in _blocks(normalized):
        weight = workspace.look_up(block, table[0], table[1], cells)
        total = weight.sum(-1, keepdim=True)
        attraction = torch.bmm(weight, offset[block.place[0]])
        pull[block.place] = attraction.addcmul_(total, offset[block.place], value=-1)
    return pull.view_as(normalized.offset)


def _expand(table: NodeTable) -> Float[Tensor, "two images cells"]:
    """A table at the lower edge of every cell, and its increase across the cell."""
    corners = rearrange(torch.cat((table[..., :-1], table[..., 1:]), 1), "b k i -> (b i) k")
    weights = corner_weights(table.device)
    increase = corners @ weights[1].mT
    edge = torch.addmm(increase, corners, weights[0].mT, beta=-0.5)
    return torch.stack((edge, increase)).view(2, len(table), -1)


# Normalisation and blocks ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Normalized:
    unit: Features  # x̂ in float32; zero where the vector is zero or its image is not finite
    inverse_norm: Float[Tensor, "images windows patches 1"]  # zero for a zero vector
    finite: Bool[Tensor, "images"]

    @cached_property
    def offset(self) -> Features:
        """x̂ from its window's mean, so that differences between like vectors keep their digits."""
        return self.unit - self.unit.mean(2, keepdim=True)


def _normalize(features: Features) -> _Normalized:
    features = features.float()
    norm = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    lowest, highest = torch.aminmax(norm)
    if not bool((lowest > SAFE_NORMS[0]) & (highest < SAFE_NORMS[1])):
        return _normalize_carefully(features)
    return _Normalized(features / norm, norm.reciprocal(), norm.new_ones(len(norm), dtype=torch.bool))


def _normalize_carefully(features: Features) -> _Normalized:
    """Zero vectors, NaN, infinities, and entries whose squares overflow or vanish."""
    largest = features.abs().amax(-1, keepdim=True)
    finite = largest.isfinite().flatten(1).all(1)
    scaled = (features / torch.where(largest > 0, largest, 1)).masked_fill_(~finite[:, None, None, None], 0)
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    unit = scaled / torch.where(norm > 0, norm, 1)
    inverse_norm = 1 / norm / largest.clamp_min(torch.finfo(largest.dtype).tiny)
    return _Normalized(unit, torch.where(norm > 0, inverse_norm, 0), finite)


def _arms(normalized: _Normalized) -> tuple[Float[Tensor, "w n channels+2"], Float[Tensor, "w n channels+2"]]:
    """Vectors whose products are u_ij = 1 − x̂_i·x̂_j = (|y_i|² + |y_j|²)/2 − y_i·y_j, y being the offsets.

    A zero vector is no unit vector: half a unit on its side makes it u = 1 from all others.
    """
    offset = normalized.offset.flatten(0, 1)
    half = torch.linalg.vecdot(offset, offset).div_(2).unsqueeze(-1)
    half.add_((normalized.inverse_norm == 0).flatten(0, 1), alpha=0.5)
    one = torch.ones_like(half)
    return torch.cat((-offset, half, one), -1), torch.cat((offset, one, half), -1)


def _chunks(features: Features, cells: int) -> Iterator[slice]:
    """Runs of images whose similarities, and whose cells, fit a block; one image where it alone does not."""
    return _slices(len(features), BLOCK // max(LayerShape(*features.shape).samples, cells))


def _blocks(normalized: _Normalized) -> Iterator[Block]:
    """All pairs of a chunk; more than one block only where the chunk is a single image."""
    images, _, patches, _ = normalized.unit.shape
    left, right = _arms(normalized)
    for windows in _slices(len(left), BLOCK // patches**2):
        for rows in _slices(patches, BLOCK // patches):
            yield Block(left[windows, rows], right[windows], (windows, rows), images)


def _slices(length: int, step: int) -> Iterator[slice]:
    step = max(1, step)
    return (slice(start, start + step) for start in range(0, length, step))

# mypy: disallow-incomplete-defs=False
"""The Triton kernels of the patch-similarity density; `density_triton` launches them.

The method is the torch backend's (see `density_cells`): distances u = 1 − Γ are counted into cells, and the gradient
is looked up in a table. Here a cell is one 64-bit integer, its number in the upper bits and its first moment in fixed
point in the lower ones, so that one atomic addition per pair does for both. Integers add up to the same bits in any
order, and nothing else passes between programs: results repeat exactly.

Every launch covers all layers: program (tile, image, layer) finds the layer's sizes in a table (`DeviceLayout`).
"""

import triton
import triton.language as tl

from psaq_kernels.stable_keys import settle_keys

# A cell: number · 2^38 + first moment · 2^13. Up to 2^24 distances, each within half a cell of the centre, keep both
# parts in their place.
NUMBER_SHIFT = tl.constexpr(38)
MOMENT_SCALE = tl.constexpr(8192.0)
BAND = tl.constexpr(6.5)  # bandwidths beyond which a Gaussian is below 1e-9 of its peak
SMALLEST_NORMAL = tl.constexpr(1.1754944e-38)
LAYOUT_FIELDS = tl.constexpr(8)


# Features -> offsets from the window's mean ---------------------------------------------------------------------------


@triton.jit
def _load_sizes(layout, ALIGNMENT: tl.constexpr):
    """Windows, patches and channels of a layer."""
    windows, patches = tl.load(layout + 2).to(tl.int32), tl.load(layout + 3).to(tl.int32)
    return windows, patches, tl.multiple_of(tl.load(layout + 4).to(tl.int32), ALIGNMENT)


@triton.jit
def _load_scaled(ptr, rows, columns, mask, channels):
    """A tile in float32 divided by each row's largest entry, these entries, and whether all is finite (else 0)."""
    x = tl.load(ptr + rows[:, None] * channels + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    is_finite = tl.abs(x) < float("inf")
    x = tl.where(is_finite, x, 0.0)
    largest = tl.max(tl.abs(x), axis=1)
    scaled = x / tl.where(largest > 0, largest, 1.0)[:, None]
    return scaled, largest, tl.min(tl.min(is_finite.to(tl.int32), axis=1), axis=0)


@triton.jit
def _center_kernel(
    features_ptr,  # (elements,)
    layout_ptr,  # (layers, LAYOUT_FIELDS) int64
    offset_ptr,  # (elements,) float32, out: unit vectors less their window's mean
    half_ptr,  # (rows,) float32, out: half the offset's squared length
    inverse_norm_ptr,  # (rows,) float32, out
    finite_ptr,  # (layers, images) int32, in and out: cleared where an image is not finite
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,  # at least all channels
):
    window, image, layer = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    layout = layout_ptr + layer * LAYOUT_FIELDS
    windows, patches, channels = _load_sizes(layout, 1)
    if window >= windows:
        return
    first = (image.to(tl.int64) * windows + window) * patches
    start_element, start_row = tl.load(layout) + first * channels, tl.load(layout + 1) + first

    columns = tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_D,), dtype=tl.float32)
    finite = 1
    for start in range(0, patches, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        mask = (rows < patches)[:, None] & (columns < channels)[None, :]
        scaled, _, tile_is_finite = _load_scaled(features_ptr + start_element, rows, columns, mask, channels)
        finite = tl.minimum(finite, tile_is_finite)
        norm = tl.sqrt(tl.sum(scaled * scaled, axis=1))
        total += tl.sum(scaled / tl.where(norm > 0, norm, 1.0)[:, None], axis=0)
    if finite == 0:
        tl.store(finite_ptr + layer * tl.num_programs(1) + image, 0)

    for start in range(0, patches, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        mask = (rows < patches)[:, None] & (columns < channels)[None, :]
        scaled, largest, _ = _load_scaled(features_ptr + start_element, rows, columns, mask, channels)
        norm = tl.sqrt(tl.sum(scaled * scaled, axis=1))
        is_zero = norm == 0
        safe_norm = tl.where(is_zero, 1.0, norm)
        offset = tl.where(mask, scaled / safe_norm[:, None] - (total / patches)[None, :], 0.0)
        tl.store(offset_ptr + start_element + rows[:, None] * channels + columns[None, :], offset, mask=mask)
        # A zero vector is no unit vector: half a unit on its side makes it u = 1 from all others.
        half = 0.5 * tl.sum(offset * offset, axis=1) + tl.where(is_zero, 0.5, 0.0)
        tl.store(half_ptr + start_row + rows, half, mask=rows < patches)
        inverse = tl.where(is_zero, 0.0, 1.0 / safe_norm / tl.maximum(largest, SMALLEST_NORMAL))
        tl.store(inverse_norm_ptr + start_row + rows, inverse, mask=rows < patches)


# Offsets -> distances -------------------------------------------------------------------------------------------------


@triton.jit
def _distances(offset_ptr, half_ptr, rows, columns, patches, channels, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr):
    """u = (|y_i|² + |y_j|²)/2 − y_i·y_j for a tile of pairs of one window."""
    product = tl.zeros((rows.shape[0], columns.shape[0]), dtype=tl.float32)
    for start in range(0, channels, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        left_mask = (rows < patches)[:, None] & (d < channels)[None, :]
        right_mask = (columns < patches)[None, :] & (d < channels)[:, None]
        left = tl.load(offset_ptr + rows[:, None] * channels + d[None, :], mask=left_mask, other=0.0)
        right = tl.load(offset_ptr + columns[None, :] * channels + d[:, None], mask=right_mask, other=0.0)
        product = tl.dot(left, right, product, input_precision=PRECISION)
    half_row = tl.load(half_ptr + rows, mask=rows < patches, other=0.0)
    half_column = tl.load(half_ptr + columns, mask=columns < patches, other=0.0)
    return tl.maximum(half_row[:, None] + half_column[None, :] - product, 0.0)


# Forward: distances -> cells -> density -------------------------------------------------------------------------------


@triton.jit
def _count_kernel(
    offset_ptr,  # (elements,) float32
    half_ptr,  # (rows,) float32
    layout_ptr,  # (layers, LAYOUT_FIELDS) int64
    cells_ptr,  # (slots, cells) int64, in and out
    first_image,
    cells,
    cells_per_unit,
    ALIGNMENT: tl.constexpr,  # divides every layer's channels and position
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Count the pairs (i, j ≥ i) of a block of patches i; off the diagonal a pair stands for two."""
    tile, image, layer = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    layout = layout_ptr + layer * LAYOUT_FIELDS
    windows, patches, channels = _load_sizes(layout, ALIGNMENT)
    blocks = tl.cdiv(patches, BLOCK_M)
    window, block = tile // blocks, tile % blocks
    if window >= windows:
        return
    first = ((first_image + image).to(tl.int64) * windows + window) * patches
    offset_ptr += tl.multiple_of(tl.load(layout), ALIGNMENT) + first * channels
    half_ptr += tl.load(layout + 1) + first
    slot = tl.load(layout + 5) * tl.num_programs(1) + image * tl.load(layout + 6) + window // tl.load(layout + 7)
    cells_ptr += slot * cells

    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    for start in range(block * BLOCK_M // BLOCK_N * BLOCK_N, patches, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        u = _distances(offset_ptr, half_ptr, rows, columns, patches, channels, BLOCK_D, PRECISION)
        position = u * cells_per_unit
        cell = tl.minimum(position.to(tl.int32), cells - 1)
        moment = tl.floor((position - cell.to(tl.float32) - 0.5) * MOMENT_SCALE + 0.5)
        code = (tl.full(moment.shape, 1, tl.int64) << NUMBER_SHIFT) + moment.to(tl.int64)
        code = tl.where(columns[None, :] == rows[:, None], code, 2 * code)
        mask = (columns[None, :] >= rows[:, None]) & (columns < patches)[None, :]
        tl.atomic_add(cells_ptr + cell, code, mask=mask, sem="relaxed")


@triton.jit
def _smooth_kernel(
    cells_ptr,  # (slots, cells) int64
    layout_ptr,  # (layers, LAYOUT_FIELDS) int64
    grid_ptr,  # (points,) float32
    finite_ptr,  # (layers, all images) int32
    density_ptr,  # (layers, all images, points) float32, out
    first_image,
    all_images,
    points,
    cells,
    cells_per_unit,
    inverse_bandwidth,
    BLOCK_G: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sum a Gaussian at the mean of every cell that is within reach of a tile of grid points."""
    tile, image, layer = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    layout = layout_ptr + layer * LAYOUT_FIELDS
    windows, patches = tl.load(layout + 2).to(tl.int32), tl.load(layout + 3).to(tl.int32)
    slots = tl.load(layout + 6).to(tl.int32)
    cells_ptr += (tl.load(layout + 5) * tl.num_programs(1) + image * slots) * cells
    g = tile * BLOCK_G + tl.arange(0, BLOCK_G)
    centre = 1.0 - tl.load(grid_ptr + g, mask=g < points, other=0.0)  # the grid point as a distance
    is_point = (g < points) & (tl.abs(centre) < float("inf"))
    band = BAND / inverse_bandwidth
    lowest = tl.min(tl.where(is_point, centre, float("inf")), axis=0) - band
    highest = tl.max(tl.where(is_point, centre, float("-inf")), axis=0) + band
    begin = (tl.minimum(tl.maximum(lowest * cells_per_unit, 0.0), cells)).to(tl.int32)
    end = (tl.minimum(tl.maximum(highest * cells_per_unit + 1, 0.0), cells)).to(tl.int32)

    density = tl.zeros((BLOCK_G,), dtype=tl.float32)
    for slot in range(0, slots):
        for start in range(begin, end, BLOCK_C):
            c = start + tl.arange(0, BLOCK_C)
            code = tl.load(cells_ptr + slot * cells + c, mask=c < end, other=0)
            number = (code + (tl.full(code.shape, 1, tl.int64) << (NUMBER_SHIFT - 1))) >> NUMBER_SHIFT
            moment = (code - (number << NUMBER_SHIFT)).to(tl.float32) / MOMENT_SCALE
            number = number.to(tl.float32)
            mean = (c.to(tl.float32) + 0.5 + moment / tl.maximum(number, 1.0)) / cells_per_unit
            z = (centre[:, None] - mean[None, :]) * inverse_bandwidth
            density += tl.sum(number[None, :] * tl.exp(-0.5 * z * z), axis=1)
    samples = windows.to(tl.float32) * patches * patches
    density *= 0.3989422804014327 * inverse_bandwidth / samples
    where = layer * all_images + first_image + image
    density = tl.where((tl.load(finite_ptr + where) != 0) & is_point, density, float("nan"))
    tl.store(density_ptr + where.to(tl.int64) * points + g, density, mask=g < points)


# Backward: density's gradient -> table of dLoss/dΓ -> features --------------------------------------------------------


@triton.jit
def _table_kernel(
    gradient_ptr,  # (layers, all images, points) float32
    layout_ptr,  # (layers, LAYOUT_FIELDS) int64
    grid_ptr,  # (points,) float32
    table_ptr,  # (layers, images, nodes, 2) float32, out: dLoss/dΓ and its increase per interval of u
    first_image,
    all_images,
    points,
    nodes,
    interval,
    inverse_bandwidth,
    BLOCK_V: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    tile, image, layer = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    layout = layout_ptr + layer * LAYOUT_FIELDS
    windows, patches = tl.load(layout + 2).to(tl.int32), tl.load(layout + 3).to(tl.int32)
    gradient_ptr += (layer * all_images + first_image + image).to(tl.int64) * points
    v = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    u = v.to(tl.float32) * interval
    band = BAND / inverse_bandwidth
    lowest, highest = tile * BLOCK_V * interval - band, (tile + 1) * BLOCK_V * interval + band

    value = tl.zeros((BLOCK_V,), dtype=tl.float32)
    slope = tl.zeros((BLOCK_V,), dtype=tl.float32)
    for start in range(0, points, BLOCK_G):
        g = start + tl.arange(0, BLOCK_G)
        centre = 1.0 - tl.load(grid_ptr + g, mask=g < points, other=0.0)
        within = (centre > lowest) & (centre < highest) & (g < points)
        if tl.max(within.to(tl.int32), axis=0) > 0:
            weight = tl.load(gradient_ptr + g, mask=within, other=0.0)
            z = (u[:, None] - centre[None, :]) * inverse_bandwidth
            kernel = weight[None, :] * tl.exp(-0.5 * z * z)
            value += tl.sum(z * kernel, axis=1)
            slope += tl.sum((1.0 - z * z) * kernel, axis=1)
    samples = windows.to(tl.float32) * patches * patches
    scale = 0.3989422804014327 * inverse_bandwidth * inverse_bandwidth / samples
    table_ptr += ((layer * tl.num_programs(1) + image).to(tl.int64) * nodes + v) * 2
    tl.store(table_ptr, value * scale, mask=v < nodes)
    tl.store(table_ptr + 1, slope * scale * interval * inverse_bandwidth, mask=v < nodes)


@triton.jit
def _load_node(table_ptr, node, mask):
    """A node's value and increase, in one 8-byte load."""
    pair = tl.load(table_ptr + node, mask=mask, other=0)
    value = (pair & 0xFFFFFFFF).to(tl.uint32).to(tl.float32, bitcast=True)
    return value, (pair >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _look_up(table_ptr, u, nodes, nodes_per_unit, mask):
    """The cubic Hermite interpolant of the table at every distance; zero where masked."""
    position = u * nodes_per_unit
    node = tl.minimum(position.to(tl.int32), nodes - 2)
    s = position - node.to(tl.float32)
    left, left_slope = _load_node(table_ptr, node, mask)
    right, right_slope = _load_node(table_ptr, node + 1, mask)
    chord = right - left
    bend = (1 - s) * (left_slope - chord) - s * (right_slope - chord)
    return left + s * (chord + (1 - s) * bend)


@triton.jit
def _pull(
    offset_ptr, half_ptr, table_ptr, rows, d, patches, channels, nodes, nodes_per_unit,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """With w_ij = dLoss/dΓ_ij, for a block of patches i: Σ_j w_ij y_j (channels d only), Σ_j w_ij and Σ_j w_ij u_ij."""
    attraction = tl.zeros((rows.shape[0], d.shape[0]), dtype=tl.float32)
    total = tl.zeros((rows.shape[0],), dtype=tl.float32)
    along = tl.zeros((rows.shape[0],), dtype=tl.float32)
    # One stage: a gather between two products in a pipelined loop crashes Triton 3.5 to 3.8 on sm_90.
    for start in tl.range(0, patches, BLOCK_N, num_stages=1):
        columns = start + tl.arange(0, BLOCK_N)
        u = _distances(offset_ptr, half_ptr, rows, columns, patches, channels, BLOCK_D, PRECISION)
        mask = (rows < patches)[:, None] & (columns < patches)[None, :]
        weight = _look_up(table_ptr, u, nodes, nodes_per_unit, mask)
        total += tl.sum(weight, axis=1)
        along += tl.sum(weight * u, axis=1)
        column_mask = (columns < patches)[:, None] & (d < channels)[None, :]
        other = tl.load(offset_ptr + columns[:, None] * channels + d[None, :], mask=column_mask, other=0.0)
        attraction = tl.dot(weight, other, attraction, input_precision=PRECISION)
    return attraction, total, along


@triton.jit
def _gradient_kernel(
    offset_ptr,  # (elements,) float32
    half_ptr,  # (rows,) float32
    inverse_norm_ptr,  # (rows,) float32
    finite_ptr,  # (layers, all images) int32
    features_ptr,  # (elements,)
    layout_ptr,  # (layers, LAYOUT_FIELDS) int64
    table_ptr,  # (layers, images, nodes) int64, each the bits of two float32
    gradient_ptr,  # (elements,), out
    first_image,
    all_images,
    nodes,
    nodes_per_unit,
    ALIGNMENT: tl.constexpr,  # divides every layer's channels and position
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,  # channels of the gradient that one program computes
    PRECISION: tl.constexpr,
):
    """2/‖x_i‖ (1 − x̂_i x̂_iᵀ) Σ_j dLoss/dΓ_ij (x̂_j − x̂_i) for a block of patches i and BLOCK_E channels.

    x̂_i·(x̂_j − x̂_i) = −u_ij, so that the projection needs no other channels than these.
    """
    tile, image, layer = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    layout = layout_ptr + layer * LAYOUT_FIELDS
    windows, patches, channels = _load_sizes(layout, ALIGNMENT)
    blocks, parts = tl.cdiv(patches, BLOCK_M), tl.cdiv(channels, BLOCK_E)
    part, window, block = tile % parts, tile // parts // blocks, tile // parts % blocks
    if window >= windows:
        return
    first = ((first_image + image).to(tl.int64) * windows + window) * patches
    element, row = tl.multiple_of(tl.load(layout), ALIGNMENT) + first * channels, tl.load(layout + 1) + first
    offset_ptr, half_ptr = offset_ptr + element, half_ptr + row
    table_ptr += (layer * tl.num_programs(1) + image).to(tl.int64) * nodes

    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    d = part * BLOCK_E + tl.arange(0, BLOCK_E)
    attraction, total, along = _pull(
        offset_ptr, half_ptr, table_ptr, rows, d, patches, channels, nodes, nodes_per_unit, BLOCK_N, BLOCK_D, PRECISION
    )  # fmt: skip
    row_mask = (rows < patches)[:, None] & (d < channels)[None, :]
    where = rows[:, None] * channels + d[None, :]
    own = tl.load(offset_ptr + where, mask=row_mask, other=0.0)
    inverse_norm = tl.load(inverse_norm_ptr + row + rows, mask=rows < patches, other=0.0)
    raw = tl.load(features_ptr + element + where, mask=row_mask, other=0.0).to(tl.float32)
    unit = tl.where(tl.abs(raw) < float("inf"), raw, 0.0) * inverse_norm[:, None]
    pull = attraction - total[:, None] * own + along[:, None] * unit
    finite = tl.load(finite_ptr + layer * all_images + first_image + image) != 0
    gradient = tl.where(finite, 2.0 * inverse_norm[:, None] * pull, float("nan"))
    tl.store(gradient_ptr + element + where, gradient.to(gradient_ptr.dtype.element_ty), mask=row_mask)


settle_keys(globals())

# mypy: disallow-incomplete-defs=False
"""The forward pass of the formulations in `formulations.py` as Triton kernels, for their registers and their time.

One program takes a block of patches i of one image against all patches j; D is at most one block.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from psaq_kernels.tunable import CompileRequest

POINTS, BINS, TERMS = 256, 2048, 550  # at a bandwidth of 0.01
BLOCK, CHANNELS, WARPS = 64, 64, 4


@triton.jit
def _similarities(unit_ptr, rows, columns, patches, BLOCK_D: tl.constexpr):
    d = tl.arange(0, BLOCK_D)
    left = tl.load(unit_ptr + rows[:, None] * BLOCK_D + d[None, :], mask=(rows < patches)[:, None], other=0.0)
    right = tl.load(unit_ptr + columns[None, :] * BLOCK_D + d[:, None], mask=(columns < patches)[None, :], other=0.0)
    return tl.dot(left, right, input_precision="ieee"), (rows < patches)[:, None] & (columns < patches)[None, :]


@triton.jit
def _direct_kernel(
    unit_ptr,
    out_ptr,
    patches,
    step,
    scale,
    POINTS: tl.constexpr,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
):
    """Every similarity at every grid point."""
    image = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    for start in range(0, patches, BLOCK):
        similarity, mask = _similarities(unit_ptr + image * patches * D, rows, start + tl.arange(0, BLOCK), patches, D)
        for point in range(0, POINTS):
            z = (similarity - (point * step - 1.0)) * scale
            total = tl.sum(tl.sum(tl.where(mask, tl.exp(-0.5 * z * z), 0.0), axis=1), axis=0)
            tl.atomic_add(out_ptr + image * POINTS + point, total)


@triton.jit
def _nearest_kernel(
    unit_ptr,
    out_ptr,
    patches,
    step,
    scale,
    POINTS: tl.constexpr,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
):
    """Counts per nearest bin, by tl.histogram."""
    image = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    counts = tl.zeros((POINTS,), dtype=tl.int32)
    for start in range(0, patches, BLOCK):
        similarity, mask = _similarities(unit_ptr + image * patches * D, rows, start + tl.arange(0, BLOCK), patches, D)
        index = tl.where(mask, ((similarity + 1.0) * (0.5 * (POINTS - 2)) + 0.5).to(tl.int32), POINTS - 1)
        counts += tl.histogram(tl.reshape(index, (BLOCK * BLOCK,)), POINTS)
    tl.atomic_add(out_ptr + image * POINTS + tl.arange(0, POINTS), counts.to(tl.float32))


@triton.jit
def _chebyshev_kernel(
    unit_ptr,
    out_ptr,
    patches,
    step,
    scale,
    POINTS: tl.constexpr,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
):
    """The sum of every Chebyshev polynomial of the similarities."""
    image = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    for start in range(0, patches, BLOCK):
        similarity, mask = _similarities(unit_ptr + image * patches * D, rows, start + tl.arange(0, BLOCK), patches, D)
        before, now = tl.where(mask, 1.0, 0.0), tl.where(mask, similarity, 0.0)
        for term in range(0, POINTS):
            tl.atomic_add(out_ptr + image * POINTS + term, tl.sum(tl.sum(before, axis=1), axis=0))
            before, now = now, 2.0 * similarity * now - before


KERNELS = {
    "direct": (_direct_kernel, POINTS),
    "nearest": (_nearest_kernel, BINS),
    "chebyshev": (_chebyshev_kernel, TERMS),
}


def compile_request(name: str) -> CompileRequest:
    kernel, points = KERNELS[name]
    pointers, numbers = ("unit_ptr", "out_ptr"), {"patches": "i32", "step": "fp32", "scale": "fp32"}
    constants = {"POINTS": points, "BLOCK": BLOCK, "D": CHANNELS}
    return CompileRequest(kernel, dict.fromkeys(pointers, "*fp32") | numbers, constants, WARPS, 1, pointers)


def launcher(name: str, unit: Tensor) -> Callable[[], None]:
    """Runs the kernel on unit vectors (images, patches, CHANNELS)."""
    kernel, points = KERNELS[name]
    images, patches, _ = unit.shape
    out = torch.zeros(images, points, device=unit.device)
    grid = (triton.cdiv(patches, BLOCK), images)
    constants = {"POINTS": points, "BLOCK": BLOCK, "D": CHANNELS}
    return lambda: kernel[grid](unit, out, patches, 2 / (points - 1), 100.0, num_warps=WARPS, **constants)

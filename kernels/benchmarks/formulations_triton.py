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
def _add_direct(out_ptr, similarity, mask, step, scale, POINTS: tl.constexpr):
    """Every similarity at every grid point."""
    for point in range(0, POINTS):
        z = (similarity - (point * step - 1.0)) * scale
        total = tl.sum(tl.sum(tl.where(mask, tl.exp(-0.5 * z * z), 0.0), axis=1), axis=0)
        tl.atomic_add(out_ptr + point, total)


@triton.jit
def _nearest_counts(similarity, mask, POINTS: tl.constexpr):
    """Counts per nearest bin, by tl.histogram; the last bin takes what is masked."""
    index = tl.where(mask, ((similarity + 1.0) * (0.5 * (POINTS - 2)) + 0.5).to(tl.int32), POINTS - 1)
    return tl.histogram(tl.reshape(index, (similarity.shape[0] * similarity.shape[1],)), POINTS)


@triton.jit
def _add_chebyshev(out_ptr, similarity, mask, POINTS: tl.constexpr):
    """The sum of every Chebyshev polynomial of the similarities."""
    before, now = tl.where(mask, 1.0, 0.0), tl.where(mask, similarity, 0.0)
    for term in range(0, POINTS):
        tl.atomic_add(out_ptr + term, tl.sum(tl.sum(before, axis=1), axis=0))
        before, now = now, 2.0 * similarity * now - before


@triton.jit
def _formulation_kernel(
    unit_ptr,  # (images, patches, D) float32
    out_ptr,  # (images, POINTS) float32, in and out
    patches,
    step,  # between grid points
    scale,  # 1/bandwidth
    FORMULATION: tl.constexpr,
    POINTS: tl.constexpr,  # of the grid, or bins, or terms
    BLOCK: tl.constexpr,
    D: tl.constexpr,
):
    image = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    out_ptr += image * POINTS
    if FORMULATION == "nearest":
        counts = tl.zeros((POINTS,), dtype=tl.int32)
    for start in range(0, patches, BLOCK):
        similarity, mask = _similarities(unit_ptr + image * patches * D, rows, start + tl.arange(0, BLOCK), patches, D)
        if FORMULATION == "direct":
            _add_direct(out_ptr, similarity, mask, step, scale, POINTS)
        elif FORMULATION == "nearest":
            counts += _nearest_counts(similarity, mask, POINTS)
        else:
            _add_chebyshev(out_ptr, similarity, mask, POINTS)
    if FORMULATION == "nearest":
        tl.atomic_add(out_ptr + tl.arange(0, POINTS), counts.to(tl.float32))


KERNELS = {"direct": POINTS, "nearest": BINS, "chebyshev": TERMS}
"""Formulation → how many sums it keeps."""


def compile_request(name: str) -> CompileRequest:
    pointers, numbers = ("unit_ptr", "out_ptr"), {"patches": "i32", "step": "fp32", "scale": "fp32"}
    signature = dict.fromkeys(pointers, "*fp32") | numbers
    return CompileRequest(_formulation_kernel, signature, _constants(name), WARPS, 1, pointers)


def launcher(name: str, unit: Tensor) -> tuple[Callable[[], None], Tensor]:
    """What runs the kernel on unit vectors (images, patches, CHANNELS), and the sums to which it adds."""
    images, patches, _ = unit.shape
    out = torch.zeros(images, KERNELS[name], device=unit.device)
    step, grid = 2 / (KERNELS[name] - 1), (triton.cdiv(patches, BLOCK), images)
    constants = _constants(name)
    return lambda: _formulation_kernel[grid](unit, out, patches, step, 100.0, num_warps=WARPS, **constants), out


def _constants(name: str) -> dict[str, int | str | float | bool | None]:
    return {"FORMULATION": name, "POINTS": KERNELS[name], "BLOCK": BLOCK, "D": CHANNELS}

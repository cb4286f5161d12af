"""The buffers through which the torch backend passes blocks of similarities."""

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psaq_kernels.density_cells import Cells

BLOCK = 1 << 18  # similarities formed at once

Distances = Float[Tensor, "windows rows patches"]
PerCell = Float[Tensor, "images cells"]


@dataclass(frozen=True)
class Block:
    """Some patches (rows) of some windows against all patches (columns) of their window: u = rows · columnsᵀ."""

    rows: Float[Tensor, "windows rows channels+2"]
    columns: Float[Tensor, "windows patches channels+2"]
    place: tuple[slice, slice]  # the windows and the rows among all
    images: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self.rows.shape[:2], self.columns.shape[1])

    @property
    def shape_by_image(self) -> tuple[int, int]:
        return (self.images, math.prod(self.shape) // self.images)


_idle = threading.local()


@contextmanager
def borrow_workspace(device: torch.device) -> Iterator["Workspace"]:
    """This thread's workspace. It is kept between calls: touching fresh memory costs more than the arithmetic."""
    kept = _idle.__dict__
    workspace = kept.pop(str(device), None) or Workspace(device)
    try:
        yield workspace
    finally:
        kept[str(device)] = workspace


class Workspace:
    """Forms a block of distances and counts it, or looks it up, without allocating anything of its size."""

    def __init__(self, device: torch.device):
        with torch.inference_mode(False):  # what is made in that mode, no later call outside it may write to
            self._position = torch.empty(BLOCK, device=device)
            self._value = torch.empty(BLOCK, device=device)
            self._slope = torch.empty(BLOCK, device=device)
            self._cell = torch.empty(BLOCK, dtype=torch.int64, device=device)
            self._height = torch.empty(BLOCK, dtype=torch.float64, device=device)
            self._ones = torch.ones(BLOCK, dtype=torch.float64, device=device)

    def distances(self, block: Block) -> Distances:
        """u = 1 − Γ, valid until the next call."""
        return torch.bmm(block.rows, block.columns.mT, out=_view(self._position, block.shape)).clamp_min_(0)

    def count(self, block: Block, number: PerCell, height: PerCell, cells: Cells) -> None:
        """For every distance, add one to its cell's ``number`` and its height in the cell to ``height``."""
        cell, fraction = self._locate(block, cells)
        number.scatter_add_(1, cell, _view(self._ones, cell.shape))
        height.scatter_add_(1, cell, _view(self._height, cell.shape).copy_(fraction))

    def look_up(self, block: Block, edge: PerCell, increase: PerCell, cells: Cells) -> Distances:
        """A table that is linear in each cell, at every distance; valid until the next call."""
        cell, fraction = self._locate(block, cells)
        value = torch.gather(edge, 1, cell, out=_view(self._value, cell.shape))
        slope = torch.gather(increase, 1, cell, out=_view(self._slope, cell.shape))
        return value.addcmul_(slope, fraction).view(block.shape)

    def _locate(
        self, block: Block, cells: Cells
    ) -> tuple[Int[Tensor, "images distances"], Float[Tensor, "images distances"]]:
        """Every distance's cell and its height in the cell, from 0 to 1."""
        position = self.distances(block).mul_(cells.per_unit).view(block.shape_by_image)
        cell = _view(self._cell, position.shape).copy_(position)
        return cell, position.frac_()


def _view(buffer: Tensor, shape: Sequence[int]) -> Tensor:
    return buffer[: math.prod(shape)].view(*shape)

"""Periodic textures and smooth noise, as fields in [0, 1].

Only exactly rounded operations (triangle waves instead of sines), so that a scene has the same bits everywhere.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from psaq.rendering.draws import Draws

Plane = Float[np.ndarray, "images height width"]
Texture = Callable[[Plane, Plane], Plane]


def stripes(u: Plane, v: Plane) -> Plane:
    """Bands along v, one per unit of u."""
    return _steep(_wave(u) - np.float32(0.5), 3)


def spots(u: Plane, v: Plane) -> Plane:
    """Dots, one per unit cell, every other row shifted by half a cell."""
    row = np.floor(v)
    shift = row - 2 * np.floor(row * np.float32(0.5))
    a, b = _centred(u + np.float32(0.5) * shift), _centred(v)
    return _steep(np.float32(0.11) - a * a - b * b, 10)


def checks(u: Plane, v: Plane) -> Plane:
    """A chessboard with cells of half a unit."""
    return _steep((_wave(u) - np.float32(0.5)) * (_wave(v) - np.float32(0.5)), 12)


def smooth_noise(draws: Draws, cells: int, size: int) -> Plane:
    """Noise in [0, 1] that varies over 1 / ``cells`` of the image: lattice values, smoothly interpolated."""
    lattice = draws.uniform(0, 1, cells + 1, cells + 1)
    position = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(cells / size)
    left = position.astype(np.int64)
    offset = position - left.astype(np.float32)
    weight = offset * offset * (3 - 2 * offset)
    rows = _blend(lattice[:, left], lattice[:, left + 1], weight[:, None])
    return _blend(rows[:, :, left], rows[:, :, left + 1], weight)


def _blend(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return a + weight * (b - a)


def _wave(u: Plane) -> Plane:
    """A triangle wave of period 1 between 0 and 1."""
    return 2 * np.abs(_centred(u))


def _centred(u: Plane) -> Plane:
    """The distance to the centre of the unit cell, in [-0.5, 0.5)."""
    return u - np.floor(u) - np.float32(0.5)


def _steep(height: Plane, slope: float) -> Plane:
    return np.clip(height * np.float32(slope) + np.float32(0.5), 0, 1)

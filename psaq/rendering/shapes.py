"""Shapes as distance functions over the plane: negative inside, positive outside, unit radius.

Only exactly rounded operations (no sine per pixel), so that a scene has the same bits on every machine.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Plane = Float[np.ndarray, "images height width"]
Shape = Callable[[Plane, Plane], Plane]


def disc(x: Plane, y: Plane) -> Plane:
    """A filled circle."""
    return np.sqrt(x * x + y * y) - np.float32(0.95)


def ring(x: Plane, y: Plane) -> Plane:
    """A circle with a wide hole."""
    return np.abs(np.sqrt(x * x + y * y) - np.float32(0.74)) - np.float32(0.29)


def triangle(x: Plane, y: Plane) -> Plane:
    """An equilateral triangle: three half-planes."""
    slanted = _direction(30)
    return np.maximum(np.abs(x) * slanted[0] + y * slanted[1], -y) - np.float32(0.6)


def cross(x: Plane, y: Plane) -> Plane:
    """Two bars of equal length at a right angle."""
    x, y = np.abs(x), np.abs(y)
    long, short = np.maximum(x, y) - np.float32(1.05), np.minimum(x, y) - np.float32(0.36)
    return np.maximum(long, short)


def star(x: Plane, y: Plane) -> Plane:
    """A five-pointed star: mirrored into one tenth of the plane, where it is a half-plane."""
    x = np.abs(x)
    for mirror in (_direction(-36), _direction(-144), _direction(-36)):
        beyond = 2 * np.maximum(x * mirror[0] + y * mirror[1], np.float32(0))
        x, y = np.abs(x - beyond * mirror[0]), y - beyond * mirror[1]
    edge = _direction(_STAR_EDGE_DEGREES)
    return x * edge[0] + (y - np.float32(1.2)) * edge[1]


SHAPES: dict[str, Shape] = {"disc": disc, "ring": ring, "triangle": triangle, "cross": cross, "star": star}

# The direction of an edge's normal in the first tenth; 18° would make the pentagram, more makes it fatter.
_STAR_EDGE_DEGREES = 24


def _direction(degrees: float) -> tuple[np.float32, np.float32]:
    return np.float32(np.cos(np.radians(degrees))), np.float32(np.sin(np.radians(degrees)))

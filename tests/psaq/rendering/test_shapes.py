"""Shapes: their areas and symmetries, in float64."""

import numpy as np
import pytest

from psaq.rendering.shapes import SHAPES

AXIS = np.linspace(-1.6, 1.6, 801)
X, Y = np.meshgrid(AXIS, AXIS)
PIXEL = (AXIS[1] - AXIS[0]) ** 2


def star_area(outer: float, normal_degrees: float) -> float:
    """Ten triangles (centre, tip, inner corner); the edge through the tip has its normal at the given angle."""
    normal = np.radians(normal_degrees)
    corner_direction = np.radians(90 - 36)
    inner = outer * np.sin(normal) / np.cos(corner_direction - normal)
    return 10 * 0.5 * outer * inner * np.sin(np.radians(36))


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("disc", np.pi * 0.95**2),
        ("ring", np.pi * (1.03**2 - 0.45**2)),
        ("triangle", 3 * np.sqrt(3) * 0.6**2),
        ("cross", 2 * 2.1 * 0.72 - 0.72**2),
        ("star", star_area(1.2, 24)),
    ],
)
def test_the_area_is_that_of_the_figure(shape, area):
    covered = (SHAPES[shape](X, Y) < 0).sum() * PIXEL
    np.testing.assert_allclose(covered, area, rtol=0.01)


@pytest.mark.parametrize(
    ("shape", "degrees"), [("disc", 23), ("ring", 23), ("triangle", 120), ("cross", 90), ("star", 72)]
)
def test_a_turn_by_its_symmetry_leaves_a_shape_alone(shape, degrees):
    angle = np.radians(degrees)
    turned = SHAPES[shape](X * np.cos(angle) - Y * np.sin(angle), X * np.sin(angle) + Y * np.cos(angle))
    np.testing.assert_allclose(turned, SHAPES[shape](X, Y), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_distances_never_change_faster_than_the_plane(shape):
    field = SHAPES[shape](X, Y)
    step = AXIS[1] - AXIS[0]
    assert np.abs(np.diff(field, axis=0)).max() <= step * 1.001
    assert np.abs(np.diff(field, axis=1)).max() <= step * 1.001

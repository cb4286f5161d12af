"""The painter: background, clutter, shadow, object, occluder, light and grain, one layer after the other."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8

from psaq.rendering.draws import Draws
from psaq.rendering.shapes import SHAPES, Shape
from psaq.rendering.textures import Texture, checks, smooth_noise, spots, stripes

SIZE = 64
CLUTTER = 4
SURFACES: dict[str, Texture] = {"striped": stripes, "spotted": spots}
CLASS_NAMES = tuple(f"{surface} {shape}" for shape in SHAPES for surface in SURFACES)

Scalar = Float[np.ndarray, "images 1 1"]
Plane = Float[np.ndarray, "images height width"]
Canvas = Float[np.ndarray, "images 3 height width"]
Labels = Int[np.ndarray, "images"]


@dataclass(frozen=True)
class Rendering:
    """Painted scenes, and which part of every pixel the object covers."""

    images: UInt8[np.ndarray, "images 3 height width"]
    coverage: Plane


@dataclass(frozen=True)
class Paint:
    """From which ranges a pair of colours is drawn."""

    brightness: tuple[float, float]
    """Of the lighter one."""
    contrast: tuple[float, float]
    """How much darker the other one is."""
    vividness: float
    """0 for greys, 1 for every hue."""


# What stands in front is brighter and more colourful than what lies behind, but not in every scene.
_GROUND = Paint(brightness=(0.25, 0.6), contrast=(0.08, 0.25), vividness=0.5)
_LITTER = Paint(brightness=(0.25, 0.75), contrast=(0.08, 0.3), vividness=0.7)
_OBJECT = Paint(brightness=(0.65, 1.0), contrast=(0.3, 0.55), vividness=1.2)


def paint(draws: Draws, labels: Labels) -> Rendering:
    """Paint one scene per label."""
    canvas = _background(draws)
    for _ in range(CLUTTER):
        _add_clutter(canvas, draws)
    coverage = _add_object(canvas, draws, labels)
    _light(canvas, draws)
    canvas += np.float32(0.05) * draws.noise(3, SIZE, SIZE)
    images = np.clip(canvas * np.float32(255) + np.float32(0.5), 0, 255).astype(np.uint8)
    return Rendering(images, coverage)


def _background(draws: Draws) -> Canvas:
    """Two textured regions that meet at an uneven horizon."""
    relief = smooth_noise(draws, 4, SIZE)
    canvas = _textured(draws, relief)
    far = _textured(draws, relief)
    _, y = _turned_plane(draws, centre=(24, 40))
    _cover(canvas, far, _soft(y + 14 * (relief - np.float32(0.5))))
    return canvas


def _textured(draws: Draws, relief: Plane) -> Canvas:
    """A whole plane of stripes, spots or checks, more or less lost in grain, in two related colours."""
    u, v = _surface_coordinates(draws)
    pattern = _of_kind(draws.choice(3), (stripes, spots, checks), u, v)
    grain = smooth_noise(draws, 16, SIZE)
    field = grain + draws.uniform(0, 1, 1, 1) * (pattern - grain)
    return _two_tone(draws, np.float32(0.6) * field + np.float32(0.4) * relief, _GROUND)


def _add_clutter(canvas: Canvas, draws: Draws) -> None:
    """A small patterned ellipse or box."""
    x, y = _turned_plane(draws, centre=(0, SIZE))
    width, height = draws.uniform(2.5, 6.5, 1, 1), draws.uniform(2.5, 6.5, 1, 1)
    x, y = np.abs(x) / width, np.abs(y) / height
    reach = np.where(draws.choice(2, 1, 1) == 0, np.sqrt(x * x + y * y), np.maximum(x, y))
    u, v = _surface_coordinates(draws)
    pattern = _of_kind(draws.choice(3), (stripes, spots, checks), u, v)
    colours = _two_tone(draws, pattern, _LITTER)
    _cover(canvas, colours, _soft((1 - reach) * np.minimum(width, height)))


def _add_object(canvas: Canvas, draws: Draws, labels: Labels) -> Plane:
    """The labelled object with its shadow and what stands before it; its visible coverage."""
    x, y, radius = _pose(draws)
    depth = -_of_kind(labels // len(SURFACES), tuple(SHAPES.values()), x, y) * radius
    mask = _soft(depth)
    _cast_shadow(canvas, draws, depth)
    u, v = _surface_coordinates(draws)
    pattern = _of_kind(labels % len(SURFACES), tuple(SURFACES.values()), u, v)
    colours = _two_tone(draws, pattern, _OBJECT)
    colours *= _shading(draws, x, y, depth)[:, None]
    _cover(canvas, colours, mask)
    return mask * (1 - _add_occluder(canvas, draws, x * radius, y * radius, radius))


def _pose(draws: Draws) -> tuple[Plane, Plane, Scalar]:
    """The object's own coordinates (tilted, squeezed, slightly bent; unit radius) and its radius in pixels."""
    radius = draws.uniform(14, 22, 1, 1)
    x, y = _plane(draws, centre=(23, 41))
    tilt = draws.uniform(-0.4, 0.4, 1, 1)
    squeeze = draws.uniform(0.8, 1, 1, 1)
    bend = np.float32(3) * (smooth_noise(draws, 3, SIZE) - np.float32(0.5))
    return (x + tilt * y + bend) / radius, (tilt * x - y - bend) / (radius * squeeze), radius


def _cast_shadow(canvas: Canvas, draws: Draws, depth: Plane) -> None:
    strength = draws.uniform(0.1, 0.5, 1, 1)
    canvas *= 1 - (strength * np.clip(1 + depth / draws.uniform(3, 7, 1, 1), 0, 1))[:, None]


def _shading(draws: Draws, x: Plane, y: Plane, depth: Plane) -> Plane:
    """Light from one side, and a rim that falls off."""
    side = draws.uniform(-0.25, 0.25, 1, 1) * x + draws.uniform(-0.25, 0.25, 1, 1) * y
    return (1 + side) * (np.float32(0.75) + np.float32(0.25) * np.clip(depth * np.float32(0.4), 0, 1))


def _add_occluder(canvas: Canvas, draws: Draws, x: Plane, y: Plane, radius: Scalar) -> Plane:
    """In most scenes a bar across the object, off its centre; what it covers."""
    slope_x, slope_y = _direction(draws)
    across = x * slope_x + y * slope_y - radius * draws.uniform(0.2, 0.9, 1, 1)
    width = radius * draws.uniform(0.06, 0.16, 1, 1) * (draws.uniform(0, 1, 1, 1) < np.float32(0.6))
    mask = _soft(width - np.abs(across)) * (width > 0)
    _cover(canvas, _two_tone(draws, smooth_noise(draws, 8, SIZE), _GROUND), mask)
    return mask


def _light(canvas: Canvas, draws: Draws) -> None:
    """A coloured light that falls off across the image, in place."""
    x, y = _turned_plane(draws, centre=(0, SIZE))
    fall = 1 + x * draws.uniform(-0.3, 0.3, 1, 1) / SIZE + y * draws.uniform(-0.3, 0.3, 1, 1) / SIZE
    canvas *= (fall * draws.uniform(0.75, 1.35, 1, 1))[:, None] * draws.uniform(0.88, 1.12, 3, 1, 1)


def _surface_coordinates(draws: Draws) -> tuple[Plane, Plane]:
    """Turned coordinates in units of the texture's period, 5 to 9 pixels."""
    x, y = _turned_plane(draws, centre=(0, SIZE))
    period = draws.uniform(5, 9, 1, 1)
    return x / period, y / period


def _turned_plane(draws: Draws, centre: tuple[float, float]) -> tuple[Plane, Plane]:
    """Pixel coordinates around a centre drawn from ``centre`` on both axes, turned by any angle."""
    x, y = _plane(draws, centre)
    cosine, sine = _direction(draws)
    return cosine * x + sine * y, cosine * y - sine * x


def _plane(draws: Draws, centre: tuple[float, float]) -> tuple[Plane, Plane]:
    """Pixel coordinates around a centre drawn from ``centre`` on both axes: x to the right, y downwards."""
    axis = np.arange(SIZE, dtype=np.float32) + np.float32(0.5)
    return axis - draws.uniform(*centre, 1, 1), axis[:, None] - draws.uniform(*centre, 1, 1)


def _direction(draws: Draws) -> tuple[Scalar, Scalar]:
    """Cosine and sine of a random angle, from the stereographic map: division only, no sine."""
    t = draws.uniform(-1, 1, 1, 1)
    flip = np.where(draws.choice(2, 1, 1) == 0, np.float32(-1), np.float32(1))
    scale = flip / (1 + t * t)
    return (1 - t * t) * scale, 2 * t * scale


def _of_kind(kinds: Labels, functions: Sequence[Shape], u: Plane, v: Plane) -> Plane:
    """Per image the function that its kind names."""
    field = np.empty(np.broadcast_shapes(u.shape, v.shape), dtype=np.float32)
    for kind, function in enumerate(functions):
        chosen = kinds == kind
        field[chosen] = function(u[chosen], v[chosen])
    return field


def _two_tone(draws: Draws, field: Plane, paint: Paint) -> Canvas:
    """The field as a blend from a light colour to a darker one."""
    hue = draws.uniform(-0.3, 0.3, 3, 1, 1)
    hue -= hue.mean(axis=1, keepdims=True)
    light = draws.uniform(*paint.brightness, 1, 1, 1) + np.float32(paint.vividness) * hue
    step = draws.uniform(*paint.contrast, 1, 1, 1) + draws.uniform(-0.1, 0.1, 3, 1, 1)
    return light - step * field[:, None]


def _cover(canvas: Canvas, layer: Canvas, mask: Plane) -> None:
    canvas += mask[:, None] * (layer - canvas)


def _soft(depth: Plane) -> Plane:
    """Coverage of a pixel whose centre lies ``depth`` pixels inside an edge."""
    return np.clip(depth + np.float32(0.5), 0, 1)

"""Curves and pictures that look like the real thing, from formulas alone."""

from collections.abc import Iterator

import numpy as np
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text

GRID = np.linspace(-1.04, 1.04, 209)


def bump(centre: float, width: float) -> np.ndarray:
    return np.exp(-0.5 * ((GRID - centre) / width) ** 2) / (width * np.sqrt(2 * np.pi))


def density_curves(layers: int, images: int = 5) -> dict[str, np.ndarray]:
    """Noise: a spike. Real and generated: two hills. They drift from layer to layer and vary from image to image."""

    def stack(curve) -> np.ndarray:
        return np.stack([[curve(k / layers, 0.02 * (i - images / 2)) for i in range(images)] for k in range(layers)])

    return {
        "noise": stack(lambda depth, shift: bump(0.7 + 0.2 * depth + shift / 4, 0.05 - 0.03 * depth)),
        "real": stack(lambda depth, shift: 0.6 * bump(0.1 + shift, 0.2) + 0.4 * bump(0.8 + shift, 0.08)),
        "generated": stack(lambda depth, shift: 0.5 * bump(shift, 0.15) + 0.5 * bump(0.85 - depth / 5, 0.06)),
    }


def pictures(count: int, height: int = 32, width: int = 32) -> np.ndarray:
    """Colour gradients, each of another hue."""
    rows, columns = np.mgrid[0:height, 0:width] / max(height, width)
    hues = np.arange(count)[:, None, None] / count
    channels = [rows + 0 * hues, columns + 0 * hues, np.broadcast_to(hues, (count, height, width))]
    return (255 * np.stack(channels, axis=-1)).astype(np.uint8)


def visible_texts(figure: Figure) -> list[Text]:
    """Every text that is drawn: not empty, not hidden, not a label that its axis leaves out."""
    figure.draw_without_rendering()
    hidden = {id(label) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in _left_out(axis)}
    texts = [text for text in figure.findobj(Text) if id(text) not in hidden]
    return [text for text in texts if text.get_text().strip() and text.get_visible()]


def _left_out(axis: Axis) -> Iterator[Text]:
    """Labels of ticks that are turned off or lie beyond the axis's limits, which matplotlib keeps but never draws."""
    low, high = sorted(axis.get_view_interval())
    for tick in axis.get_major_ticks():
        if not (tick.get_visible() and low <= tick.get_loc() <= high):
            yield from (tick.label1, tick.label2)


def assert_tidy(figure: Figure) -> None:
    """No text is cut off by the figure's edge, and none covers another."""
    texts = visible_texts(figure)
    boxes = [text.get_window_extent() for text in texts]
    width, height = figure.bbox.width, figure.bbox.height
    for text, box in zip(texts, boxes, strict=True):
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
        assert inside, f"{text.get_text()!r} is cut off: {box} in {width}×{height}"
    for i, first in enumerate(boxes):
        for j in range(i):
            assert not _overlap(first, boxes[j]), f"{texts[i].get_text()!r} covers {texts[j].get_text()!r}"


def _overlap(first, second) -> bool:
    across = min(first.x1, second.x1) - max(first.x0, second.x0)
    down = min(first.y1, second.y1) - max(first.y0, second.y0)
    return across > 1 and down > 1

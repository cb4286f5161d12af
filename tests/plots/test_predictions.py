"""Two models' predictions beside each other: what differs is marked and counted, and nothing else."""

import matplotlib as mpl
import numpy as np
import pytest
from plot_examples import assert_tidy, pictures

from psaq_plots import DrawnBoxes, boxes_figure, pixels_figure
from psaq_plots.predictions import CLASS_COLOURS, DIFFERENT

NAMES = ["sky", "building", "pole", "road", "pavement"]


def classes(seed, shape):
    return np.random.default_rng(seed).integers(0, len(NAMES), shape)


def boxes(corners, partnered):
    return DrawnBoxes(np.array(corners, float).reshape(-1, 4), np.arange(len(corners)), partnered)


@pytest.mark.parametrize("style", ["paper", "dark", "talk"])
@pytest.mark.parametrize("count", [1, 4])
def test_pixels_that_differ_are_marked_and_counted(count, style):
    images = pictures(count)
    one = [classes(index, image.shape[:2]) for index, image in enumerate(images)]
    other = [each.copy() for each in one]
    for each in other:
        each[:5, :6] = (each[:5, :6] + 1) % len(NAMES)
    figure = pixels_figure(images, list(zip(one, other, strict=True)), NAMES, style=style)
    assert_tidy(figure)
    marked = np.array([round(255 * value) for value in mpl.colors.to_rgb(DIFFERENT)])
    for left, right in zip(figure.axes[::2], figure.axes[1::2], strict=True):
        shown, changed = (panel.images[0].get_array() for panel in (left, right))
        assert (changed[:5, :6] == marked).all()
        np.testing.assert_array_equal(changed[5:], shown[5:])
        assert right.get_xlabel() == f"{100 * 30 / shown[..., 0].size:.1f} % of pixels differ"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*NAMES, "differs"]


def test_boxes_of_one_alone_are_marked_and_counted():
    image = pictures(1)[0]
    pair = boxes([[1, 1, 9, 9], [3, 3, 8, 8]], [True, False]), boxes([[1, 1, 9, 9]], [True])
    figure = boxes_figure([image], [pair], NAMES)
    assert_tidy(figure)
    left, right = figure.axes
    assert [panel.get_xlabel() for panel in (left, right)] == ["2 boxes, 1 here alone", "1 box, 0 here alone"]
    edges = [mpl.colors.to_hex(patch.get_edgecolor()).upper() for patch in left.patches]
    assert edges == [CLASS_COLOURS[0], DIFFERENT]
    assert left.patches[0].get_bbox().extents.tolist() == [1, 1, 9, 9]


def test_nothing_found_is_drawn_too():
    nothing = boxes([], [])
    assert_tidy(boxes_figure(list(pictures(2)), [(nothing, nothing)] * 2, NAMES))


def test_a_picture_of_absurd_proportions_stays_small():
    image = pictures(1, height=4000, width=3)[0]
    nothing = boxes([], [])
    assert boxes_figure([image], [(nothing, nothing)], NAMES).get_figheight() < 6


def test_what_does_not_fit_is_refused():
    image = pictures(1)[0]
    small = classes(0, (3, 3))
    with pytest.raises(ValueError, match="picture 0: sizes"):
        pixels_figure([image], [(small, small)], NAMES)
    whole = classes(0, image.shape[:2])
    with pytest.raises(ValueError, match="holds a class without a name"):
        pixels_figure([image], [(whole, whole)], NAMES[:2])
    with pytest.raises(ValueError, match="there are none"):
        boxes_figure([], [], NAMES)
    with pytest.raises(ValueError, match="1 names are given"):
        boxes_figure([image], [(boxes([[0, 0, 1, 1]] * 2, [True] * 2),) * 2], NAMES[:1])

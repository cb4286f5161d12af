"""The tidiness check itself: it must fail where texts are cut off or cover each other."""

import pytest
from matplotlib.figure import Figure
from plot_examples import assert_tidy


def test_a_text_over_the_edge_is_found():
    figure = Figure(figsize=(2, 2))
    figure.text(0.9, 0.5, "too long for the edge")
    with pytest.raises(AssertionError, match="cut off"):
        assert_tidy(figure)


def test_two_texts_in_one_place_are_found():
    figure = Figure(figsize=(2, 2))
    figure.text(0.1, 0.5, "one")
    figure.text(0.12, 0.5, "two")
    with pytest.raises(AssertionError, match="covers"):
        assert_tidy(figure)


def test_tick_labels_count():
    figure = Figure(figsize=(1, 1))
    axes = figure.subplots()
    axes.set_xticks([0.4, 0.5], ["a long label", "another label"])
    with pytest.raises(AssertionError):
        assert_tidy(figure)

"""Similarity maps, losses, layer errors and accuracies: the numbers drawn are the numbers given."""

import numpy as np
import pytest
from plot_examples import assert_tidy, pictures

from psaq_plots import (
    accuracy_figure,
    layer_errors_figure,
    losses_figure,
    rounds_figure,
    sensitivity_figure,
    similarity_figure,
)

PATCH = (0.25, 0.5, 0.125, 0.125)


def similarity_arguments(layers: int) -> dict:
    gamma = [np.linspace(-1, 1, 256).reshape(16, 16) ** (layer + 1) for layer in range(layers)]
    return {
        "image": pictures(1)[0],
        "similarities": gamma,
        "maps": [matrix[5].reshape(4, 4) for matrix in gamma],
        "patch": PATCH,
        "layers": [f"stage 1 · block {layer + 1}" for layer in range(layers)],
    }


@pytest.mark.parametrize("layers", [1, 4, 6, 12, 24])
def test_similarity_texts_are_whole_and_apart(layers):
    assert_tidy(similarity_figure(**similarity_arguments(layers)))


def test_similarity_shows_each_layer_on_one_scale():
    arguments = similarity_arguments(2)
    image, *heats = [axes.images[0] for axes in similarity_figure(**arguments).axes if axes.images][:5]
    np.testing.assert_array_equal(image.get_array(), arguments["image"])
    expected = [arguments["similarities"][0], arguments["maps"][0], arguments["similarities"][1], arguments["maps"][1]]
    for heat, values in zip(heats, expected, strict=True):
        np.testing.assert_array_equal(heat.get_array(), values)
        assert heat.get_clim() == (-1, 1)


def test_similarity_marks_the_patch_where_it_is():
    picture = similarity_figure(**similarity_arguments(1)).axes[0]
    for mark in picture.patches:
        assert (mark.get_x() + 0.5, mark.get_y() + 0.5) == (0.25 * 32, 0.5 * 32)
        assert (mark.get_width(), mark.get_height()) == (4, 4)


def test_patches_that_are_not_compared_stay_blank():
    arguments = similarity_arguments(1)
    arguments["maps"] = [np.where(np.eye(4) > 0, np.nan, 0.5)]
    heat = similarity_figure(**arguments).axes[2].images[0]
    np.testing.assert_array_equal(heat.get_array().mask, np.eye(4) > 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": ["a"]}, "give one each"),
        ({"similarities": [np.zeros((4, 5))] * 2}, "not square"),
        ({"maps": [np.zeros(16)] * 2}, "rows, columns"),
        ({"patch": (0.9, 0.5, 0.2, 0.1)}, "beyond the image"),
        ({"image": np.zeros((8, 8, 3))}, "uint8"),
    ],
)
def test_wrong_similarity_arrays_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        similarity_figure(**{**similarity_arguments(2), **change})


@pytest.mark.parametrize("losses", [1, 2, 3, 4])
def test_losses_draw_batches_and_their_mean(losses):
    history = {f"loss {k}": np.arange(20.0).reshape(2, 10) * (k + 1) for k in range(losses)}
    figure = losses_figure(history)
    assert_tidy(figure)
    for axes, (name, values) in zip(figure.axes, history.items(), strict=True):
        assert axes.get_title(loc="left") == name
        *batches, mean = [line.get_ydata() for line in axes.lines]
        np.testing.assert_array_equal(batches, values)
        np.testing.assert_array_equal(mean, values.mean(0))


@pytest.mark.parametrize("history", [{}, {"total": np.zeros(3)}, {"total": np.zeros((1, 0))}])
def test_losses_of_no_step_are_refused(history):
    with pytest.raises(ValueError, match="history"):
        losses_figure(history)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_rounds_show_every_figure_and_the_best_round(count):
    figures = {f"figure {k}": np.array([np.nan, 2.0, 1.0, 3.0]) + k for k in range(count)}
    figure = rounds_figure(figures, best=2)
    assert_tidy(figure)
    for axes, (name, values) in zip(figure.axes, figures.items(), strict=True):
        assert axes.get_title(loc="left") == name
        line, mark = axes.lines
        np.testing.assert_array_equal(line.get_ydata(), values)
        assert set(mark.get_xdata()) == {2}


@pytest.mark.parametrize(
    ("figures", "best"), [({}, 0), ({"a": np.zeros(2), "b": np.zeros(3)}, 0), ({"a": np.zeros(2)}, 2)]
)
def test_rounds_that_do_not_fit_are_refused(figures, best):
    with pytest.raises(ValueError, match=r"figures|best"):
        rounds_figure(figures, best)


@pytest.mark.parametrize("layers", [1, 10, 74])
def test_layer_errors_have_a_row_each(layers):
    names = [f"blocks.{index}.mlp.fc1" for index in range(layers)]
    errors = {"weights": np.linspace(10, 20, layers), "activations": np.linspace(30, 20, layers)}
    figure = layer_errors_figure(errors, names)
    assert_tidy(figure)
    panel = figure.axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()] == names
    for dots, values in zip(panel.collections[1:], errors.values(), strict=True):
        np.testing.assert_allclose(dots.get_offsets(), np.stack([values, np.arange(layers)], axis=1))


def test_a_layer_without_numbers_keeps_its_row():
    figure = layer_errors_figure({"weights": np.array([10.0, np.nan])}, ["a", "b"])
    assert len(figure.axes[0].get_yticklabels()) == 2


def test_layer_errors_of_another_number_of_layers_are_refused():
    with pytest.raises(ValueError, match="weights"):
        layer_errors_figure({"weights": np.zeros(3)}, ["a", "b"])


@pytest.mark.parametrize("layers", [1, 10, 74])
def test_sensitivity_has_two_bars_per_layer(layers):
    names = [f"blocks.{index}.mlp.fc1" for index in range(layers)]
    sqnr, agreement = np.linspace(10, 60, layers), np.linspace(70, 100, layers)
    figure = sensitivity_figure(sqnr, agreement, names)
    assert_tidy(figure)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == names
    for panel, values in zip(figure.axes, (sqnr, agreement), strict=True):
        bars = panel.patches
        np.testing.assert_allclose([bar.get_width() for bar in bars], values)
        np.testing.assert_allclose([bar.get_y() + bar.get_height() / 2 for bar in bars], np.arange(layers))


def test_a_layer_that_costs_nothing_has_the_longest_bar():
    figure = sensitivity_figure(np.array([np.inf, 20.0, np.nan]), np.array([100.0, 90.0, 80.0]), ["a", "b", "c"])
    assert_tidy(figure)
    nothing, some, unknown = (bar.get_width() for bar in figure.axes[0].patches)
    assert nothing == figure.axes[0].get_xlim()[1] > some == 20
    assert unknown == 0
    assert "pale" in figure.axes[0].get_xlabel()
    assert "pale" not in figure.axes[1].get_xlabel()


def test_without_classes_there_is_no_panel_of_agreement():
    figure = sensitivity_figure(np.array([10.0, 20.0]), None, ["a", "b"])
    assert_tidy(figure)
    assert [panel.get_xlabel() for panel in figure.axes] == ["logit SQNR (dB)"]


@pytest.mark.parametrize(
    ("sqnr", "agreement", "layers", "message"),
    [([], [], [], "at least one"), ([1.0], [1.0, 2.0], ["a"], "agreement"), ([1.0], [1.0], ["a", "b"], "sqnr")],
)
def test_sensitivities_of_another_number_of_layers_are_refused(sqnr, agreement, layers, message):
    with pytest.raises(ValueError, match=message):
        sensitivity_figure(np.array(sqnr), np.array(agreement), layers)


def test_accuracy_places_dots_and_published_rings():
    figure = accuracy_figure(
        {"noise": [6.0, 4.0], "generated": [82.0, 77.0]},
        ["W8A8", "W4A8"],
        full_precision=[82.5, 82.5],
        published={"generated": [72.0, 66.0]},
    )
    assert_tidy(figure)
    dots = {dots.get_label(): dots.get_offsets()[:, 0].tolist() for dots in figure.axes[0].collections[1:]}
    assert dots["noise"] == [6.0, 4.0]
    assert dots["generated"] == [82.0, 77.0]
    assert [72.0, 66.0] in dots.values()
    assert figure.axes[0].lines[0].get_xdata() == pytest.approx([82.5, 82.5])


def test_full_precision_may_be_an_array():
    figure = accuracy_figure({"noise": [6.0, 4.0]}, ["W8A8", "W4A8"], np.array([82.5, 82.5]))
    assert figure.axes[0].lines[0].get_xdata() == pytest.approx([82.5, 82.5])
    with pytest.raises(ValueError, match="full_precision: 0 numbers for 1 rows"):
        accuracy_figure({"noise": [6.0]}, ["W8A8"], [])


def test_accuracy_of_another_number_of_rows_is_refused():
    with pytest.raises(ValueError, match="noise: 1 numbers for 2 rows"):
        accuracy_figure({"noise": [6.0]}, ["W8A8", "W4A8"])

"""Fig. 2 and the strip from noise to image: pictures unchanged, captions whole."""

import numpy as np
import pytest
from plot_examples import assert_tidy, pictures

from psaq_plots import film_figure, samples_figure


def shown(figure):
    return [axes.images[0].get_array() for axes in figure.axes]


@pytest.mark.parametrize("count", [1, 2, 5, 16, 33])
def test_every_picture_is_shown_as_given_in_order(count):
    images = pictures(count)
    for drawn, image in zip(shown(samples_figure(images)), images, strict=True):
        np.testing.assert_array_equal(drawn, image)


@pytest.mark.parametrize("count", [1, 5, 16, 33])
def test_captions_are_apart_however_long(count):
    names = ["tench", "black-and-tan coonhound, a hunting dog", "jay", "Weimaraner"]
    captions = [f"{names[index % 4]}\n{90.5} %" for index in range(count)]
    assert_tidy(samples_figure(pictures(count), captions))


def test_a_long_caption_ends_in_an_ellipsis_and_a_short_one_stays():
    figure = samples_figure(pictures(8), ["jay"] * 7 + ["black-and-tan coonhound, a hunting dog\n93 %"])
    captions = [axes.get_xlabel() for axes in figure.axes]
    assert captions[:7] == ["jay"] * 7
    name, confidence = captions[7].split("\n")
    assert name.startswith("black")
    assert name.endswith("…")
    assert confidence == "93 %"


def test_film_has_a_row_per_image_and_a_column_per_moment():
    film = np.stack([pictures(2) // divisor for divisor in (4, 2, 1)])
    figure = film_figure(film, [0, 50, 100], ["circle", "star"])
    drawn = np.stack(shown(figure)).reshape(2, 3, 32, 32, 3)
    np.testing.assert_array_equal(drawn, film.transpose(1, 0, 2, 3, 4))
    assert [axes.get_title() for axes in figure.axes] == ["step 0", "step 50", "step 100", "", "", ""]
    assert [axes.get_ylabel() for axes in figure.axes] == ["circle", "", "", "star", "", ""]
    assert_tidy(figure)


def test_film_labels_are_apart_however_long():
    film = np.stack([pictures(3)] * 6)
    figure = film_figure(film, [0, 20, 40, 60, 80, 1000], ["Chesapeake Bay retriever, a very long name"] * 3)
    assert_tidy(figure)
    assert figure.axes[0].get_ylabel().endswith("…")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (pictures(2).astype(float), "uint8"),
        (pictures(2)[..., :1], "3 colours"),
        (pictures(2)[0], "4 dimensions"),
        (pictures(2)[:0], "not empty"),
    ],
)
def test_other_arrays_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        samples_figure(images)


def test_a_missing_caption_or_step_is_named():
    with pytest.raises(ValueError, match="captions: 1 for 2"):
        samples_figure(pictures(2), ["one"])
    film = pictures(2)[None]
    with pytest.raises(ValueError, match="steps: 2 for 1"):
        film_figure(film, [0, 1])
    with pytest.raises(ValueError, match="captions: 1 for 2"):
        film_figure(film, [0], ["one"])

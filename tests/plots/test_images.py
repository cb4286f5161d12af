"""Each figure beside its picture in baseline/. After a wanted change: ``python tests/plots/test_images.py``."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image, ImageFilter
from plot_examples import GRID, density_curves, pictures

import psaq_plots.style
from psaq_plots import (
    STYLES,
    accuracy_figure,
    density_figure,
    film_figure,
    layer_errors_figure,
    losses_figure,
    samples_figure,
    save_figure,
    sensitivity_figure,
    similarity_figure,
)

BASELINE = Path(__file__).parent / "baseline"
PAPER = replace(STYLES["paper"], dpi=100)

# Both pictures are blurred over BLUR pixels and compared where they differ most, of 255. Letters drawn without
# hinting move lines and pictures by a pixel: curves then differ by 17 at most, pictures, whose edges are sharp, by 36.
# A curve gone missing differs by 44 or more, a picture by 200 (all tested below).
BLUR = 5
TOLERANCE = dict.fromkeys(("samples", "film", "similarity"), 50)
TOLERANCE |= dict.fromkeys(("density", "losses", "layer_errors", "sensitivity", "accuracy"), 30)


def similarity_example() -> Figure:
    patches = pictures(1, 8, 8)[0].reshape(64, 3) / 128 - 1.0
    unit = patches / np.linalg.norm(patches, axis=1, keepdims=True)
    gamma = [unit @ unit.T, (unit @ unit.T) ** 3]
    maps = [matrix[20].reshape(8, 8) for matrix in gamma]
    return similarity_figure(
        pictures(2)[1], gamma, maps, (0.5, 0.25, 0.125, 0.125), ["block 1", "block 2"], style=PAPER
    )


def losses_example() -> Figure:
    steps = np.linspace(0, 5, 50)
    decay = np.stack([np.exp(-steps) + 0.1 * np.sin(3 * steps + phase) for phase in (0, 1)])
    return losses_figure({"entropy": 1 - decay, "class": 4 * decay, "smoothness": decay**2}, style=PAPER)


def layer_errors_example() -> Figure:
    layers = [f"blocks.{block}.{part}" for block in range(3) for part in ("attn", "mlp")]
    errors = {"weights": np.linspace(20, 25, 6), "activations": np.array([30, 28, np.nan, 35, 22, 31])}
    return layer_errors_figure(errors, layers, style=PAPER)


def sensitivity_example() -> Figure:
    layers = [f"blocks.{block}.{part}" for block in range(3) for part in ("attn", "mlp")]
    sqnr, agreement = np.array([60, 35, 52, np.inf, 41, 20]), np.array([100, 96, 98, 100, 97, 71])
    return sensitivity_figure(sqnr, agreement, layers, style=PAPER)


def accuracy_example() -> Figure:
    return accuracy_figure(
        {"noise": [6, 4], "real": [81, 76], "generated": [82, 77]},
        ["W8A8", "W4A8"],
        full_precision=[82, 82],
        published={"noise": [11, 8], "real": [71, 65], "generated": [72, 66]},
        style=PAPER,
    )


def film_example() -> Figure:
    film = np.stack([pictures(2) // fraction for fraction in (4, 2, 1)])
    return film_figure(film, [0, 50, 100], ["circle", "star"], style=PAPER)


EXAMPLES: dict[str, Callable[[], Figure]] = {
    "density": lambda: density_figure(GRID, density_curves(6), [f"block {k + 1}" for k in range(6)], style=PAPER),
    "samples": lambda: samples_figure(pictures(7), [f"class {k}\n{90 + k} %" for k in range(7)], style=PAPER),
    "film": film_example,
    "similarity": similarity_example,
    "losses": losses_example,
    "layer_errors": layer_errors_example,
    "sensitivity": sensitivity_example,
    "accuracy": accuracy_example,
}


def difference(name: str, figure: Figure, folder: Path) -> float:
    """The largest difference, over pixels and channels, from the picture in baseline/."""
    actual = folder / f"{name}.png"
    save_figure(figure, actual)
    expected, found = (blurred(file) for file in (BASELINE / f"{name}.png", actual))
    assert expected.shape == found.shape
    return float(np.abs(expected - found).max())


def blurred(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB").filter(ImageFilter.GaussianBlur(BLUR)), dtype=float)


@pytest.mark.parametrize("name", EXAMPLES)
def test_figure_looks_as_it_did(name, tmp_path):
    assert difference(name, EXAMPLES[name](), tmp_path) < TOLERANCE[name]


@pytest.mark.parametrize("name", EXAMPLES)
def test_other_letters_stay_within_tolerance(name, tmp_path, monkeypatch):
    settings = psaq_plots.style._settings
    unhinted = {"text.hinting": "none", "text.antialiased": False}
    monkeypatch.setattr(psaq_plots.style, "_settings", lambda style: {**settings(style), **unhinted})
    figure = EXAMPLES[name]()
    with mpl.rc_context(unhinted):
        assert difference(name, figure, tmp_path) < TOLERANCE[name]


def test_a_missing_bar_is_seen(tmp_path):
    layers = [f"blocks.{block}.{part}" for block in range(3) for part in ("attn", "mlp")]
    sqnr, agreement = np.array([60, 35, np.nan, np.inf, 41, 20]), np.array([100, 96, 98, 100, 97, 71])
    figure = sensitivity_figure(sqnr, agreement, layers, style=PAPER)
    assert difference("sensitivity", figure, tmp_path) > TOLERANCE["sensitivity"]


@pytest.mark.parametrize("missing", ["noise", "real", "generated"])
def test_a_missing_curve_is_seen(missing, tmp_path):
    curves = density_curves(6)
    curves[missing] = np.zeros_like(curves[missing])
    figure = density_figure(GRID, curves, [f"block {k + 1}" for k in range(6)], style=PAPER)
    assert difference("density", figure, tmp_path) > TOLERANCE["density"]


def test_a_missing_picture_is_seen(tmp_path):
    images = pictures(7)
    images[3] = 255
    figure = samples_figure(images, [f"class {k}\n{90 + k} %" for k in range(7)], style=PAPER)
    assert difference("samples", figure, tmp_path) > TOLERANCE["samples"]


def test_baseline_is_small():
    sizes = {file.name: file.stat().st_size for file in BASELINE.iterdir()}
    assert set(sizes) == {f"{name}.png" for name in EXAMPLES}
    assert max(sizes.values()) <= 60_000


if __name__ == "__main__":
    BASELINE.mkdir(exist_ok=True)
    for name, draw in EXAMPLES.items():
        save_figure(draw(), BASELINE / f"{name}.png")

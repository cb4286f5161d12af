"""Fig. 3: what is drawn is what was given, tidy at any number of layers."""

import numpy as np
import pytest
from plot_examples import GRID, assert_tidy, density_curves

from psaq_plots import density_figure, save_figure


def panels_of(figure):
    return [axes for axes in figure.axes if axes.lines]


@pytest.mark.parametrize("style", ["paper", "talk"])
@pytest.mark.parametrize("layers", [1, 4, 7, 12, 24])
def test_texts_are_whole_and_apart(layers, style):
    names = [f"stage {1 + layer // 12} · block {1 + layer % 12}" for layer in range(layers)]
    assert_tidy(density_figure(GRID, density_curves(layers), names, style=style))


def test_lines_are_the_means_over_images():
    curves = density_curves(3)
    figure = density_figure(GRID, curves, ["a", "b", "c"])
    for layer, panel in enumerate(panels_of(figure)):
        for line, density in zip(panel.lines, curves.values(), strict=True):
            np.testing.assert_array_equal(line.get_xdata(), GRID)
            np.testing.assert_allclose(line.get_ydata(), density[layer].mean(0), rtol=1e-12)


def test_band_holds_the_quantiles():
    curves = {"real": density_curves(1, images=11)["real"]}
    figure = density_figure(GRID, curves, ["a"], quantiles=(0.1, 0.9))
    vertices = panels_of(figure)[0].collections[0].get_paths()[0].vertices
    low, high = np.quantile(curves["real"][0], (0.1, 0.9), axis=0)
    assert vertices[:, 1].max() == pytest.approx(high.max())
    middle = vertices[np.isclose(vertices[:, 0], GRID[100])]
    assert sorted(set(middle[:, 1].round(9))) == pytest.approx(sorted({low[100].round(9), high[100].round(9)}))


def test_panels_share_axes_and_show_all_of_every_curve():
    curves = density_curves(5)
    panels = panels_of(density_figure(GRID, curves, list("abcde")))
    limits = {(panel.get_xlim(), panel.get_ylim()) for panel in panels}
    assert len(limits) == 1
    (left, right), (bottom, top) = limits.pop()
    assert (left, bottom) == (-1, 0)
    assert right >= 1
    assert top > max(np.quantile(density, 0.9, axis=1).max() for density in curves.values())


def test_legend_names_each_source_once_in_its_own_look():
    figure = density_figure(GRID, density_curves(2), ["a", "b"])
    legend = figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["noise", "real", "generated"]
    looks = {(line.get_color(), line.get_linestyle(), line.get_linewidth()) for line in legend.get_lines()}
    assert len(looks) == 3


def test_every_panel_of_the_last_row_of_its_column_has_numbers_below():
    panels = panels_of(density_figure(GRID, density_curves(7), list("abcdefg")))
    with_numbers = [panel.xaxis.get_tick_params()["labelbottom"] for panel in panels]
    assert with_numbers == [False, False, False, False, True, True, True]


def test_paper_is_one_column_wide():
    figure = density_figure(GRID, density_curves(24), [str(layer) for layer in range(24)])
    width, height = figure.get_size_inches()
    assert width == pytest.approx(3.4)
    assert height < 9.5, "does not fit a page"


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_file_is_the_same_twice(ending, tmp_path):
    for name in ("first", "second"):
        figure = density_figure(GRID, density_curves(2), ["a", "b"])
        save_figure(figure, tmp_path / f"{name}{ending}")
    assert (tmp_path / f"first{ending}").read_bytes() == (tmp_path / f"second{ending}").read_bytes()


def test_pdf_embeds_truetype_fonts_and_svg_needs_none(tmp_path):
    figure = density_figure(GRID, density_curves(1), ["a"])
    for ending in (".pdf", ".svg"):
        save_figure(figure, tmp_path / f"figure{ending}")
    pdf = (tmp_path / "figure.pdf").read_bytes()
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    assert "<text" not in (tmp_path / "figure.svg").read_text()


def test_other_endings_are_refused(tmp_path):
    figure = density_figure(GRID, density_curves(1), ["a"])
    with pytest.raises(ValueError, match=r"\.png, \.svg, \.pdf"):
        save_figure(figure, tmp_path / "figure.gif")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"densities": {}}, "no source"),
        ({"layers": []}, "no layer"),
        ({"layers": ["a"]}, "instead of"),
        ({"grid": GRID[::-1]}, "ascending"),
        ({"quantiles": (0.9, 0.1)}, "ascending pair"),
        ({"style": "neon"}, "paper, dark, talk"),
        ({"densities": {"real": np.full((2, 3, len(GRID)), np.nan)}}, "not finite"),
        ({"densities": {"real": np.zeros((2, 0, len(GRID)))}}, "instead of"),
    ],
)
def test_wrong_arrays_are_named(change, message):
    arguments = {"grid": GRID, "densities": density_curves(2), "layers": ["a", "b"], **change}
    with pytest.raises(ValueError, match=message):
        density_figure(**arguments)


def test_settings_of_the_caller_are_left_alone():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    save_settings = density_figure(GRID, density_curves(1), ["a"], style="dark")
    assert save_settings is not None
    assert dict(mpl.rcParams) == before

"""Density curves of a model: the formula, the layers, the errors, the files."""

import csv
import json

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid

from psaq.density import patch_similarity_density, similarity_grid
from psaq.density.measure import layer_label
from psaq.errors import PsaqError
from psaq.images.synthetic import SyntheticImages
from psaq.models.features import patch_features


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def direct_density(features: torch.Tensor, grid: np.ndarray, bandwidth: float) -> np.ndarray:
    """Equations 1 and 2, in float64, pair by pair."""
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    samples = (unit @ unit.mT).flatten(1)[..., None].numpy()
    kernel = np.exp(-0.5 * ((grid - samples) / bandwidth) ** 2) / (bandwidth * np.sqrt(2 * np.pi))
    return kernel.mean(1)


@pytest.mark.parametrize("heads", ["mean", "separate"])
@pytest.mark.parametrize("name", ["vit", "swin"])
def test_density_is_the_formula(name, heads, images, request):
    model = request.getfixturevalue(name)
    curves = patch_similarity_density(model, images, heads=heads, bandwidth=0.02, batch_size=2)
    with torch.no_grad():
        features = patch_features(model, images, heads)
    for density, feature, patches in zip(curves.density["images"], features, curves.patches, strict=True):
        assert patches == feature.shape[2]
        expected = direct_density(feature, curves.grid, 0.02)
        np.testing.assert_allclose(density, expected, atol=1e-4 * expected.max())


def test_density_integrates_to_one_and_entropy_is_its_integral(vit, images):
    curves = patch_similarity_density(vit, images)
    density, grid = curves.density["images"].astype(float), curves.grid.astype(float)
    np.testing.assert_allclose(trapezoid(density, grid, axis=-1), 1, atol=2e-4)
    floored = density + 1e-4
    entropy = -trapezoid(floored * np.log(floored), grid, axis=-1)
    np.testing.assert_allclose(curves.entropy["images"], entropy, atol=1e-4)


def test_batches_change_nothing(vit, images):
    one_by_one = patch_similarity_density(vit, images, batch_size=1).density["images"]
    together = patch_similarity_density(vit, [images[:1], images[1:]], batch_size=8).density["images"]
    np.testing.assert_allclose(one_by_one, together, atol=1e-4 * together.max())


def test_layers_are_chosen_and_named(vit, swin, images):
    every = patch_similarity_density(swin, images)
    assert every.layers == ("stage 1 · block 1", "stage 1 · block 2", "stage 2 · block 1", "stage 2 · block 2")
    some = patch_similarity_density(swin, images, layers=[4, 2])
    assert some.layers == ("stage 2 · block 2", "stage 1 · block 2")
    np.testing.assert_allclose(some.density["images"], every.density["images"][[3, 1]], rtol=1e-5, atol=1e-6)
    assert patch_similarity_density(vit, images).layers == ("block 1", "block 2")


def test_labels_of_unknown_names_count_up():
    assert layer_label("encoder.attention", 4) == "block 5"


def test_sources_keep_their_names(vit, images):
    curves = patch_similarity_density(vit, {"noise": images, "real": images[:2]})
    assert {source: density.shape[1] for source, density in curves.density.items()} == {"noise": 3, "real": 2}
    synthetic = SyntheticImages(images, torch.zeros(3, dtype=torch.long), (0.5,) * 3, (0.5,) * 3)
    assert list(patch_similarity_density(vit, synthetic).density) == ["generated"]


@pytest.mark.parametrize("layers", [[0], [3], [-1], []])
def test_layers_out_of_range_are_named(vit, images, layers):
    with pytest.raises(PsaqError, match=r"counted from 1 to 2"):
        patch_similarity_density(vit, images, layers=layers)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"bandwidth": 0.0}, "bandwidth"), ({"bandwidth": 1.0}, "bandwidth"), ({"grid_points": 50}, "too coarse")],
)
def test_a_grid_that_cannot_be_right_is_refused(vit, images, options, message):
    with pytest.raises(PsaqError, match=message):
        patch_similarity_density(vit, images, **options)


def test_images_of_another_size_are_named(vit):
    with pytest.raises(PsaqError, match="real images are 48×32 pixels, the model takes 32×32"):
        patch_similarity_density(vit, {"real": torch.zeros(1, 3, 48, 32)})


def test_no_images_are_refused(vit):
    with pytest.raises(PsaqError):
        patch_similarity_density(vit, {})
    with pytest.raises(PsaqError):
        patch_similarity_density(vit, torch.zeros(0, 3, 32, 32))


def test_default_grid_is_finer_than_the_bandwidth_and_holds_the_kernel():
    for bandwidth in (0.002, 0.01, 0.2):
        grid = similarity_grid(bandwidth)
        assert grid.diff().max() <= 0.51 * bandwidth
        assert float(grid[-1]) == pytest.approx(1 + 4 * bandwidth)


def test_model_and_gradients_are_left_alone(vit, images):
    before = [parameter.clone() for parameter in vit.parameters()]
    hooks = sum(len(module._forward_pre_hooks) for module in vit.modules())
    patch_similarity_density(vit, images)
    assert all(torch.equal(a, b) for a, b in zip(before, vit.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in vit.parameters())
    assert sum(len(module._forward_pre_hooks) for module in vit.modules()) == hooks


@pytest.fixture
def curves(vit, images):
    return patch_similarity_density(vit, {"noise": images, "real": images * 0.3 + images.roll(5, -1)}, layers=[2])


def test_plot_writes_a_file_and_returns_the_figure(curves, tmp_path):
    figure = curves.plot(tmp_path / "new" / "fig3.png")
    assert (tmp_path / "new" / "fig3.png").read_bytes().startswith(b"\x89PNG")
    assert len([axes for axes in figure.axes if axes.lines]) == 1


def test_plot_without_a_path_writes_nothing(curves, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    curves.plot()
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_is_an_error_and_leaves_nothing(curves, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PsaqError, match="folder"):
        curves.plot(tmp_path / "file" / "fig3.png")
    with pytest.raises(PsaqError, match=r"\.gif"):
        curves.plot(tmp_path / "fig3.gif")
    with pytest.raises(PsaqError, match="neon"):
        curves.plot(style="neon")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_csv_holds_the_drawn_curves(curves, tmp_path):
    curves.write_csv(tmp_path / "curves.csv")
    rows = list(csv.DictReader((tmp_path / "curves.csv").read_text().splitlines()))
    assert len(rows) == len(curves.grid)
    assert {row["layer"] for row in rows} == {"block 2"}
    for part, expected in (
        ("mean", curves.density["real"][0].mean(0)),
        ("low", np.quantile(curves.density["real"][0], 0.1, axis=0)),
        ("high", np.quantile(curves.density["real"][0], 0.9, axis=0)),
    ):
        np.testing.assert_allclose([float(row[f"real_{part}"]) for row in rows], expected, rtol=1e-3, atol=1e-9)


def test_json_holds_the_numbers(curves, tmp_path):
    curves.write_json(tmp_path / "numbers.json")
    written = json.loads((tmp_path / "numbers.json").read_text())
    noise, real = (written["sources"][source] for source in ("noise", "real"))
    assert noise["images"] == 3
    assert noise["entropy"] == pytest.approx(float(curves.entropy["noise"].mean()))
    assert noise["layers"][0]["to_real"] > 0
    assert real["layers"][0]["to_real"] is None
    assert noise["verdict"] == curves.verdicts()["noise"]


def test_a_source_is_at_no_distance_from_its_like(vit, images):
    curves = patch_similarity_density(vit, {"generated": images, "real": images})
    assert [layer.to_real for layer in curves.numbers()["generated"]] == pytest.approx([0, 0], abs=1e-9)

"""Modes, widths and distances of densities whose answers are known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psaq.density.modes import central_width, distance, find_modes, separation, smoothed, without_self_similarity

GRID = np.linspace(-1.04, 1.04, 417)


def normal(centre: float, width: float) -> np.ndarray:
    return np.exp(-0.5 * ((GRID - centre) / width) ** 2) / (width * np.sqrt(2 * np.pi))


def test_one_hill_is_one_mode_at_its_top():
    (mode,) = find_modes(GRID, normal(0.9, 0.02))
    assert mode.position == pytest.approx(0.9, abs=0.005)
    assert mode.height == pytest.approx(1 / (0.02 * np.sqrt(2 * np.pi)), rel=0.02)
    assert mode.mass == pytest.approx(1)
    assert separation((mode,)) is None


def test_two_hills_are_two_modes_with_their_masses():
    modes = find_modes(GRID, 0.3 * normal(-0.2, 0.1) + 0.7 * normal(0.6, 0.05))
    assert [mode.position for mode in modes] == pytest.approx([-0.2, 0.6], abs=0.005)
    assert [mode.mass for mode in modes] == pytest.approx([0.3, 0.7], abs=0.01)
    assert separation(modes) == pytest.approx(0.8, abs=0.01)


def test_separation_is_between_the_two_heaviest():
    density = 0.1 * normal(-0.6, 0.05) + 0.5 * normal(0.0, 0.05) + 0.4 * normal(0.7, 0.05)
    assert separation(find_modes(GRID, density)) == pytest.approx(0.7, abs=0.01)


def test_a_ripple_is_no_mode():
    rippled = normal(0.2, 0.2) * (1 + 0.03 * np.sin(60 * GRID))
    assert len(find_modes(GRID, rippled)) == 1


def test_ripples_of_few_samples_are_smoothed_away():
    rng = np.random.default_rng(0)
    samples, bandwidth = 480, 0.01
    drawn = rng.normal(0.2, 0.25, size=samples)
    estimate = (np.exp(-0.5 * ((GRID[:, None] - drawn) / bandwidth) ** 2)).mean(1) / (bandwidth * np.sqrt(2 * np.pi))
    assert len(find_modes(GRID, estimate)) > 1
    assert len(find_modes(GRID, smoothed(GRID, estimate, samples, bandwidth))) == 1


def test_smoothing_is_silvermans_estimate():
    rng = np.random.default_rng(1)
    samples, bandwidth = 500, 0.01
    drawn = np.concatenate([rng.normal(-0.3, 0.1, 250), rng.normal(0.5, 0.05, 250)])

    def estimate(width: float) -> np.ndarray:
        return np.exp(-0.5 * ((GRID[:, None] - drawn) / width) ** 2).mean(1) / (width * np.sqrt(2 * np.pi))

    low, high = np.quantile(drawn, [0.25, 0.75])
    width = 0.9 * min(drawn.std(), (high - low) / 1.34) * samples**-0.2
    found = smoothed(GRID, estimate(bandwidth), samples, bandwidth)
    np.testing.assert_allclose(found, estimate(width), atol=0.02 * found.max())
    assert len(find_modes(GRID, found)) == 2


def test_what_is_smooth_already_is_left_alone():
    density = normal(0.9, 0.02)
    assert smoothed(GRID, density, 10**6, 0.02) is density


def test_a_hill_of_little_mass_is_no_mode_however_sharp():
    assert len(find_modes(GRID, 0.98 * normal(0.0, 0.1) + 0.02 * normal(0.9, 0.01))) == 1
    assert len(find_modes(GRID, 0.90 * normal(0.0, 0.1) + 0.10 * normal(0.9, 0.01))) == 2


def test_nothing_has_no_mode():
    assert find_modes(GRID, np.zeros_like(GRID)) == ()


@settings(deadline=None, max_examples=30)
@given(st.floats(0.1, 100), st.floats(-0.5, 0.5), st.floats(0.05, 0.2))
def test_modes_do_not_depend_on_the_scale_of_the_density(scale, centre, width):
    density = 0.5 * normal(centre, width) + 0.5 * normal(0.8, 0.05)
    plain, scaled = find_modes(GRID, density), find_modes(GRID, scale * density)
    assert [mode.position for mode in plain] == [mode.position for mode in scaled]
    assert [mode.mass for mode in plain] == pytest.approx([mode.mass for mode in scaled])


def test_central_width_is_that_of_a_normal():
    assert central_width(GRID, normal(0.1, 0.1)) == pytest.approx(2 * 1.6449 * 0.1, rel=0.01)


@settings(deadline=None, max_examples=30)
@given(st.floats(-0.6, 0.6), st.floats(-0.6, 0.6))
def test_distance_between_shifted_hills_is_the_shift(first, second):
    assert distance(GRID, normal(first, 0.05), normal(second, 0.05)) == pytest.approx(abs(first - second), abs=1e-6)


def test_self_similarity_is_taken_out_exactly():
    rng = np.random.default_rng(0)
    patches, bandwidth = 12, 0.02
    features = rng.normal(size=(patches, 8))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    gamma = unit @ unit.T
    kernel = np.exp(-0.5 * ((GRID[:, None] - gamma.ravel()) / bandwidth) ** 2) / (bandwidth * np.sqrt(2 * np.pi))
    pairs = ~np.eye(patches, dtype=bool).ravel()
    expected = kernel[:, pairs].mean(1)
    found = without_self_similarity(GRID, kernel.mean(1), patches, bandwidth)
    np.testing.assert_allclose(found, expected, atol=1e-9 * expected.max())

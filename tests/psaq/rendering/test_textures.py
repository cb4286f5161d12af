"""Textures: their range, period and share of ink."""

import numpy as np
import pytest

from psaq.rendering.draws import Draws
from psaq.rendering.textures import checks, smooth_noise, spots, stripes

AXIS = (np.arange(600) - 299.5) / 100  # six units, and never exactly on an edge
U, V = (axis[None] for axis in np.meshgrid(AXIS, AXIS))


@pytest.mark.parametrize(("texture", "ink"), [(stripes, 0.5), (spots, np.pi * 0.11), (checks, 0.5)])
def test_a_texture_is_a_field_in_0_to_1_with_its_share_of_ink(texture, ink):
    field = texture(U, V)
    assert field.min() == 0
    assert field.max() == 1
    np.testing.assert_allclose((field > 0.5).mean(), ink, atol=0.01)


@pytest.mark.parametrize("texture", [stripes, spots, checks])
def test_a_texture_repeats_after_one_unit_along_u_and_two_along_v(texture):
    np.testing.assert_allclose(texture(U + 1, V), texture(U, V), atol=1e-9)
    np.testing.assert_allclose(texture(U, V + 2), texture(U, V), atol=1e-9)


def test_stripes_run_along_v():
    np.testing.assert_array_equal(stripes(U, V), stripes(U, V + 0.37))


def test_smooth_noise_passes_through_its_lattice_and_is_smooth_between():
    noise = smooth_noise(Draws(np.arange(3), seed=2), cells=8, size=64)
    lattice = Draws(np.arange(3), seed=2).uniform(0, 1, 9, 9)
    assert noise.shape == (3, 64, 64)
    assert noise.min() >= lattice.min()
    assert noise.max() <= lattice.max()
    # Half a pixel from a lattice point the value is within the smoothstep's 1.2 % of its neighbours' range.
    np.testing.assert_allclose(noise[:, ::8, ::8], lattice[:, :8, :8], atol=0.03)
    # A smoothstep over 8 pixels is never steeper than 1.5 / 8 per pixel.
    assert np.abs(np.diff(noise, axis=2)).max() <= 1.5 / 8

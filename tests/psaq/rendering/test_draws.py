"""Random draws: the published hash, uniform, and independent of the neighbours."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from psaq.rendering.draws import Draws, _mix


def test_the_hash_is_splitmix64():
    # The first outputs of the reference generator for state 0: mix(1·γ), mix(2·γ), mix(3·γ).
    golden = 0x9E3779B97F4A7C15
    states = np.array([golden * k % 2**64 for k in (1, 2, 3)], dtype=np.uint64)
    assert [hex(x) for x in _mix(states)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**63 - 1),
    low=st.floats(-100, 100, width=32),
    width=st.floats(0.125, 100, width=32),
)
def test_uniform_stays_within_its_bounds(seed, low, width):
    drawn = Draws(np.arange(50), seed).uniform(low, low + width, 4)
    assert drawn.dtype == np.float32
    assert drawn.shape == (50, 4)
    assert (drawn >= np.float32(low)).all()
    assert (drawn <= np.float32(low + width)).all()


def test_uniform_draws_are_uniform_along_images_and_along_draws():
    draws = Draws(np.arange(100), seed=4).uniform(0, 1, 100)
    for line in (draws[0], draws[:, 0], draws.ravel()):
        assert stats.kstest(line, "uniform").pvalue > 1e-4


def test_neighbouring_images_and_draws_are_uncorrelated():
    draws = Draws(np.arange(200), seed=4).uniform(-0.5, 0.5, 200)
    for ahead, behind in ((draws[1:], draws[:-1]), (draws[:, 1:], draws[:, :-1])):
        correlation = np.corrcoef(ahead.ravel(), behind.ravel())[0, 1]
        assert abs(correlation) < 5 / np.sqrt(ahead.size)


def test_choices_are_all_made_equally_often():
    chosen = Draws(np.arange(6000), seed=9).choice(6)
    assert stats.chisquare(np.bincount(chosen, minlength=6)).pvalue > 1e-4


def test_noise_has_mean_0_and_the_variance_of_a_triangle():
    noise = Draws(np.arange(4), seed=1).noise(3, 64, 64)
    assert noise.shape == (4, 3, 64, 64)
    assert abs(noise.mean()) < 5 * np.sqrt(1 / 6 / noise.size)
    np.testing.assert_allclose(noise.var(), 1 / 6, rtol=0.05)

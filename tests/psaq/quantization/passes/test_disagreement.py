"""How far answers are apart, beside formulas written out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from psaq.quantization.passes.disagreement import disagreement, feature_disagreement, image_sqnr


def _answers(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(0, 99), st.floats(1e-4, 10))
def test_each_images_own_error_counts_in_decibels(seed, size):
    wanted, noise = _answers(seed, 4, 7), size * _answers(seed + 100, 4, 7)
    expected = [-10 * ((error**2).mean() / wanted.var()).log10() for error in noise]
    torch.testing.assert_close(image_sqnr([wanted + noise], [wanted]), torch.stack(expected), rtol=1e-6, atol=1e-6)


def test_one_image_outweighs_others_by_decibels_alone():
    wanted = _answers(0, 8, 5)
    near, far = wanted + 0.01, wanted + 0.01
    far[0] += 10
    lost = image_sqnr([near], [wanted]) - image_sqnr([far], [wanted])
    assert lost[1:].abs().max() == 0
    assert lost[0] == pytest.approx(60, abs=0.1)


def test_parts_of_other_scales_count_alike():
    one, other = _answers(1, 3, 4), _answers(2, 3, 2, 6)
    errors = [_answers(3, 3, 4), _answers(4, 3, 2, 6)]
    plain = image_sqnr([one + errors[0], other + errors[1]], [one, other])
    scaled = image_sqnr([one + errors[0], 100 * (other + errors[1])], [one, 100 * other])
    torch.testing.assert_close(plain, scaled, rtol=1e-9, atol=1e-9)


def test_the_same_answers_are_told_apart_by_nothing():
    wanted = _answers(5, 2, 3)
    assert image_sqnr([wanted], [wanted]).tolist() == [120, 120]


@pytest.mark.parametrize("measure", ["divergence", "distance"])
def test_answers_in_bfloat16_are_compared_in_float32(measure):
    one, other = (_answers(seed, 4, 7).bfloat16() for seed in (6, 7))
    found = disagreement([one], [other], "classification", measure)
    assert found.dtype == torch.float32
    assert found == disagreement([one.float()], [other.float()], "classification", measure)
    assert feature_disagreement([one], [other]) == feature_disagreement([one.float()], [other.float()])

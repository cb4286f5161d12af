"""Flat copies: smooth, of high contrast, within the range of their originals."""

import pytest
import torch

from psaq.quantization.passes.flat_copies import flat_copies, flat_copy


def images(count: int, size: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize(("copies", "sizes"), [(0, []), (2, [2]), (5, [4, 1]), (99, [4, 3])])
def test_the_first_images_are_copied(copies, sizes):
    found = flat_copies([images(4), images(3)], copies)
    assert [len(batch) for batch in found] == sizes
    originals = [images(4)[:copies], images(3)]
    assert all(torch.equal(copy, flat_copy(x[: len(copy)])) for copy, x in zip(found, originals, strict=False))


def test_neighbouring_pixels_are_nearly_alike():
    x, flat = images(4), flat_copy(images(4))
    assert flat.shape == x.shape
    assert flat.diff(dim=3).square().mean() < 0.01 * x.diff(dim=3).square().mean()


def test_contrast_is_multiplied_about_the_mean():
    x = torch.zeros(1, 3, 64, 64)
    x[..., :32] = 0.1
    flat = flat_copy(torch.cat([x, images(1) * 10]))[0]
    assert flat[..., 0].mean() == pytest.approx(0.05 + 4 * 0.05, abs=1e-5)
    assert flat[..., -1].mean() == pytest.approx(0.05 - 4 * 0.05, abs=1e-5)


def test_they_stay_within_the_range_of_all_images():
    x = images(3)
    flat = flat_copy(x)
    assert (flat.amin((0, 2, 3)) >= x.amin((0, 2, 3))).all()
    assert (flat.amax((0, 2, 3)) <= x.amax((0, 2, 3))).all()


@pytest.mark.parametrize("size", [(8, 8), (20, 36)])
def test_small_and_odd_images_have_copies(size):
    assert flat_copy(torch.randn(2, 3, *size)).shape == (2, 3, *size)

"""Collages: parts of two images in other colours, the same ones every time."""

import pytest
import torch

from psaq.quantization.passes.collages import collage, collages


def images(count: int, size: tuple[int, int] = (64, 48)) -> torch.Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(count))


def drawn(x: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return collage(x, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (1, [4, 3]), (2, [4, 3, 4, 3])])
def test_every_image_has_as_many_as_are_asked_for(count, sizes):
    assert [len(batch) for batch in collages([images(4), images(3)], count)] == sizes


def test_they_are_the_same_every_time_and_differ_from_one_another():
    first, again = collages([images(4)], 2), collages([images(4)], 2)
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not torch.allclose(first[0], first[1], atol=0.1)


def test_they_stay_within_the_range_of_all_images():
    x = images(5)
    made = drawn(x)
    assert made.shape == x.shape
    assert (made.amin((0, 2, 3)) >= x.amin((0, 2, 3))).all()
    assert (made.amax((0, 2, 3)) <= x.amax((0, 2, 3))).all()


def test_most_of_them_hold_parts_of_two_images():
    """Of images of one grey each: what is set in is another grey, whatever the colours."""
    x = torch.linspace(-1, 1, 16)[:, None, None, None].expand(16, 3, 64, 64).contiguous()
    spreads = drawn(x).std((1, 2, 3))
    assert (spreads > 1e-3).sum() >= 8


def test_colours_contrast_and_light_change():
    x = images(1)[:, :, :1, :1].expand(1, 3, 8, 8).repeat(64, 1, 1, 1) * 0.1
    x = torch.cat([x, torch.full_like(x[:1], 9), torch.full_like(x[:1], -9)])  # room for every light
    made = drawn(x)[:64]
    means, colours = made.mean((1, 2, 3)), (made - made.mean(1, keepdim=True)).std((1, 2, 3))
    assert means.std() > 0.3
    assert colours.max() > 1.5 * colours.median()


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (20, 37)])
def test_a_single_small_or_odd_image_has_one(size):
    assert drawn(images(1, size)).shape == (1, 3, *size)

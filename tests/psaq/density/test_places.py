"""Where patch features came from, followed through whatever a model does with its patches."""

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from makes import MAKES, images_for, made
from timm.models.swin_transformer import window_partition
from torch import Tensor, nn

from psaq.density.places import patch_places, tiling
from psaq.errors import PsaqError

SIDE = 4
"""Pixels of a patch."""


class Rearranged(nn.Module):
    """One attention over patches that were rearranged before it."""

    num_classes = 3

    def __init__(self, rearrange, rows: int, columns: int, values_first: bool = False):
        super().__init__()
        self.image_size = (SIDE * rows, SIDE * columns)
        self.rearrange, self.values_first = rearrange, values_first
        self.embed = nn.Conv2d(3, 8, SIDE, SIDE)
        self.norm, self.qkv, self.proj, self.head = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.rearrange(self.norm(self.embed(images).permute(0, 2, 3, 1)))  # (images and windows) patches channels
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = (q @ k.mT).softmax(-1)
        attended = (v.mT @ scores.mT).mT if self.values_first else scores @ v
        return self.head(self.proj(attended).unflatten(0, (len(images), -1)).mean((1, 2)))


def grid_of(model: nn.Module) -> Tensor:
    (places,) = patch_places(model, torch.zeros(3, *model.image_size))
    return tiling(places)


@pytest.mark.parametrize(
    ("resolution", "window", "shift"),
    [((8, 8), (4, 4), (0, 0)), ((8, 12), (4, 4), (2, 2)), ((10, 9), (4, 3), (2, 1)), ((6, 6), (4, 4), (1, 3))],
)
def test_windows_are_found_where_they_were_cut(resolution, window, shift):
    rows, columns = resolution

    def cut(x: Tensor) -> Tensor:
        x = torch.roll(x, (-shift[0], -shift[1]), dims=(1, 2))
        x = nn.functional.pad(x, (0, 0, 0, -columns % window[1], 0, -rows % window[0]))
        return window_partition(x, window).flatten(1, 2)

    places = torch.arange(1, rows * columns + 1).float().reshape(1, rows, columns, 1)
    grid = grid_of(Rearranged(cut, rows, columns))
    torch.testing.assert_close(cut(places).flatten()[grid], places[0, ..., 0])


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 5), st.integers(2, 5), st.booleans(), st.randoms(use_true_random=False))
def test_any_order_of_patches_is_found(rows, columns, values_first, random):
    order = random.sample(range(rows * columns), rows * columns)
    grid = grid_of(Rearranged(lambda x: x.flatten(1, 2)[:, order], rows, columns, values_first))
    assert [order[position] for position in grid.flatten().tolist()] == list(range(rows * columns))


def test_patches_that_lie_in_no_grid_are_refused():
    doubled = Rearranged(lambda x: torch.cat((x, x), 1).flatten(1, 2), 3, 4)
    with pytest.raises(PsaqError, match="not known where 1 × 24 patches lie"):
        grid_of(doubled)


@pytest.mark.parametrize(
    ("name", "grids"),
    [
        ("swinv2_cr_tiny_224", {(56, 56), (28, 28), (14, 14), (7, 7)}),
        ("hiera_tiny_224", {(56, 56), (28, 28), (14, 14), (7, 7)}),
        ("volo_d1_224", {(28, 28), (14, 14)}),
    ],
)
def test_grids_of_windowed_models_tile_the_image(name, grids):
    places = patch_places(timm.create_model(name).eval(), torch.zeros(3, 224, 224))
    assert {tuple(tiling(each).shape) for each in places} == grids


def test_a_window_that_is_wider_than_the_grid_is_known_where_the_image_is():
    places = patch_places(torchvision.models.swin_v2_t().eval(), torch.zeros(3, 224, 224))
    assert len(places) == 12
    assert tiling(places[-1]).shape == (7, 7)
    assert places[-1].shape == (1, 64)


@pytest.mark.parametrize("make", MAKES)
def test_tiny_models_of_every_make_tile_their_image(make):
    model = made(make)
    for places in patch_places(model, images_for(model)[0]):
        rows, columns = tiling(places).shape
        assert rows * columns == int((places.real > 0).sum())

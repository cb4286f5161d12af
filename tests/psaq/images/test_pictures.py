"""Picture files from anywhere: found, ordered, spread, refused by name."""

import pytest
import torch
from PIL import Image

from psaq.errors import PsaqError
from psaq.images.pictures import load_pictures, normalised_for, picture_files
from psaq.images.synthetic import SyntheticImages
from psaq.models.zoo import data_config


@pytest.fixture
def folder(tmp_path):
    for index, name in enumerate(("b/2.png", "a/1.jpg", "3.webp", "readme.txt", "b/c/4.bmp")):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("no picture")
        else:
            Image.new("RGB", (40, 36), (60 * index, 0, 255 - 60 * index)).save(path)
    return tmp_path


def test_folders_are_searched_to_the_bottom_in_sorted_order(folder):
    found = [path.relative_to(folder).as_posix() for path in picture_files([folder])]
    assert found == ["3.webp", "a/1.jpg", "b/2.png", "b/c/4.bmp"]


def test_files_and_folders_may_be_mixed(folder):
    found = picture_files([folder / "3.webp", folder / "b"])
    assert [path.name for path in found] == ["3.webp", "2.png", "4.bmp"]


def test_pictures_fit_the_model(folder, vit):
    images = load_pictures(folder, vit)
    config = data_config(vit)
    assert images.shape == (4, 3, *config.image_size)
    red = images[2, 0].mean() * config.std[0] + config.mean[0]
    assert red == pytest.approx(0, abs=0.01), "2.png has no red"


def test_a_count_is_spread_over_all(folder, vit):
    torch.testing.assert_close(load_pictures(folder, vit, count=2), load_pictures(folder, vit)[[0, 2]])


@pytest.mark.parametrize("count", [0, -1, 5])
def test_a_count_that_is_not_there_is_refused(folder, vit, count):
    with pytest.raises(PsaqError, match="4 were found"):
        load_pictures(folder, vit, count=count)


def test_a_missing_path_is_named(tmp_path, vit):
    with pytest.raises(PsaqError, match="nowhere"):
        load_pictures(tmp_path / "nowhere", vit)


def test_synthesised_images_of_another_normalisation_keep_their_colours(vit):
    config = data_config(vit)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    others = SyntheticImages(images, torch.zeros(2, dtype=torch.long), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    moved = normalised_for(vit, others)
    colours = SyntheticImages(moved, others.labels, config.mean, config.std).true_colours()
    assert (colours.int() - others.true_colours().int()).abs().max() <= 1

"""Picture files from anywhere: found, ordered, spread, refused by name."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from psaq.errors import PsaqError
from psaq.images.pictures import load_pictures, normalised_for, picture_files
from psaq.images.preprocessing import read_image
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


def _model(channels):
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, in_chans=channels)


def test_a_model_of_one_channel_sees_greys(folder):
    images = load_pictures(folder, _model(1))
    assert images.shape == (4, 1, 32, 32)
    red, blue = images[0].mean() * 0.5 + 0.5, images[2].mean() * 0.5 + 0.5
    assert red == pytest.approx((0.299 * 120 + 0.114 * 135) / 255, abs=0.01), "3.webp"
    assert blue == pytest.approx(0.114, abs=0.01), "2.png is blue"


def test_channels_that_no_picture_has_are_refused(folder):
    with pytest.raises(PsaqError, match="images of 4 channels: a picture file has 1 or 3; pass a tensor"):
        load_pictures(folder, _model(4))


def test_synthesised_images_of_other_channels_are_refused(vit):
    grey = SyntheticImages(torch.zeros(1, 1, 32, 32), torch.zeros(1, dtype=torch.long), (0.5,), (0.5,))
    with pytest.raises(PsaqError, match="images of 1 channels: the model takes 3"):
        normalised_for(vit, grey)


def test_what_macos_puts_beside_pictures_is_passed_over(folder):
    for name in ("._3.webp", "a/._1.jpg"):
        (folder / name).write_bytes(b"\x00\x05\x16\x07")
    assert [path.name for path in picture_files([folder])] == ["3.webp", "1.jpg", "2.png", "4.bmp"]


def test_linked_folders_are_searched_and_those_that_lead_back_are_not(folder, tmp_path_factory):
    linked = tmp_path_factory.mktemp("linked")
    (linked / "class0").symlink_to(folder / "b")
    (linked / "class1").symlink_to(folder / "a")
    (folder / "b" / "back").symlink_to(linked)
    (linked / "itself").symlink_to(linked / "itself")
    found = [path.relative_to(linked).as_posix() for path in picture_files([linked])]
    assert found == ["class0/2.png", "class0/c/4.bmp", "class1/1.jpg"]


def test_a_link_that_leads_nowhere_is_named(folder):
    (folder / "a" / "5.png").symlink_to(folder / "gone.png")
    with pytest.raises(PsaqError, match=r"a/5\.png: is a link to .*gone\.png, which is not there"):
        picture_files([folder])
    (folder / "gone.png").symlink_to(folder / "b" / "2.png")
    assert len(picture_files([folder])) == 6


def test_pictures_that_are_not_read_are_counted(folder, capsys):
    for name in ("x.gif", "a/y.HEIC", "b/z.gif"):
        (folder / name).write_bytes(b"")
    assert len(picture_files([folder])) == 4
    assert capsys.readouterr().err == f"psaq: {folder}: 4 pictures, 3 passed over (.gif 2, .heic 1)\n"


@pytest.mark.parametrize("suffix", [".tif", ".TIFF"])
def test_tiffs_are_read(tmp_path, vit, suffix):
    draw = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(draw).save(tmp_path / f"a{suffix}", format="TIFF")
    Image.fromarray(draw).save(tmp_path / "b.png")
    images = load_pictures(tmp_path, vit)
    assert torch.equal(images[0], images[1])


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_pixels_of_16_bits_keep_their_greys(tmp_path, suffix):
    greys = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(greys).save(tmp_path / f"a{suffix}")
    read = np.asarray(read_image(tmp_path / f"a{suffix}", "a"))
    np.testing.assert_allclose(read[..., 0], greys / 257, atol=0.5)


def test_pixels_without_a_white_are_refused(tmp_path):
    Image.fromarray(np.ones((8, 8), dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(PsaqError, match="nothing says which are black and white"):
        read_image(tmp_path / "a.tif", "a")

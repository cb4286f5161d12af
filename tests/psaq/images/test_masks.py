"""Pictures and their masks: paired by name, whole, of one size; what is not is named."""

import numpy as np
import pytest
import torch
from dense_makes import SIDE, dense_model, write_masks, write_pictures
from PIL import Image

from psaq.errors import PsaqError
from psaq.images.masks import segmentation
from psaq.models.data import data_config


@pytest.fixture(scope="module")
def segmenter():
    return dense_model("UperNet")


@pytest.fixture
def folder(tmp_path):
    write_pictures(tmp_path / "images")
    write_masks(tmp_path / "masks")
    return tmp_path


def test_a_picture_comes_whole_and_its_mask_as_it_is(folder, segmenter):
    pictures = segmentation(folder / "images", folder / "masks", segmenter, ignore=254)
    image, truth = pictures[2]
    config = data_config(segmenter)
    picture = Image.open(folder / "images" / "2.png").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    wanted = (torch.tensor(np.array(picture)).permute(2, 0, 1) / 255 - mean) / std
    torch.testing.assert_close(image, wanted, atol=1e-5, rtol=0)
    assert torch.equal(truth.mask, torch.tensor(np.array(Image.open(folder / "masks" / "2.png"))))
    assert (truth.size, truth.ignore) == ((48, 60), 254)


def test_colours_by_index_are_classes(folder, segmenter):
    mask = np.array(Image.open(folder / "masks" / "0.png"))
    indexed = Image.fromarray(mask)
    indexed.putpalette([value for index in range(256) for value in (index * 7 % 256, 0, 0)])
    indexed.save(folder / "masks" / "0.png")
    with Image.open(folder / "masks" / "0.png") as written:
        assert written.mode == "P"
    truth = segmentation(folder / "images", folder / "masks", segmenter)[0][1]
    assert torch.equal(truth.mask, torch.tensor(mask))


def test_a_mask_in_true_colours_is_refused(folder, segmenter):
    Image.new("RGB", (60, 48)).save(folder / "masks" / "0.png")
    with pytest.raises(PsaqError, match=r"0\.png: is a picture of mode RGB; a mask has one channel"):
        segmentation(folder / "images", folder / "masks", segmenter)[0]


def test_a_lossy_mask_is_refused(folder, segmenter):
    with Image.open(folder / "masks" / "0.png") as mask:
        mask.save(folder / "masks" / "0.jpg")
    (folder / "masks" / "0.png").unlink()
    with pytest.raises(PsaqError, match=r"0\.jpg: is a JPEG, which changes the numbers of classes; save masks as PNG"):
        segmentation(folder / "images", folder / "masks", segmenter)[0]


def test_masks_that_count_otherwise_are_read_by_labels(folder, segmenter):
    values = np.array([[0, 1, 2], [3, 0, 1]], dtype=np.uint8)
    for index in range(3):
        Image.new("RGB", (3, 2)).save(folder / "images" / f"{index}.png")
        Image.fromarray(values).save(folder / "masks" / f"{index}.png")
    places = folder / "images", folder / "masks", segmenter
    truth = segmentation(*places, ignore=0, labels=[1, 2, 3])[0][1]
    assert truth.mask.tolist() == [[255, 0, 1], [2, 255, 0]]
    assert truth.ignore == 255
    with pytest.raises(PsaqError, match=r"0\.png: holds 3, which is neither among labels nor void \(0\)"):
        segmentation(*places, ignore=0, labels=[1, 2])[0]
    with pytest.raises(PsaqError, match="each once, and none void"):
        segmentation(*places, ignore=0, labels=[0, 1])[0]


def test_another_size_is_refused(folder, segmenter):
    Image.new("L", (48, 60)).save(folder / "masks" / "0.png")
    with pytest.raises(PsaqError, match=r"0\.png: is 48×60, its picture 60×48"):
        segmentation(folder / "images", folder / "masks", segmenter)[0]


def test_a_damaged_mask_is_named(folder, segmenter):
    (folder / "masks" / "0.png").write_bytes(b"no picture")
    with pytest.raises(PsaqError, match=r"0\.png: is not a mask that can be read"):
        segmentation(folder / "images", folder / "masks", segmenter)[0]


@pytest.mark.parametrize("lacking", ["images", "masks"])
def test_what_has_no_partner_is_named(folder, segmenter, lacking):
    (folder / lacking / "1.png").unlink()
    with pytest.raises(PsaqError, match=rf"1\.png: has no partner 1 in .*{lacking}"):
        segmentation(folder / "images", folder / "masks", segmenter)


def test_two_of_a_name_are_refused(folder, segmenter):
    Image.new("RGB", (60, 48)).save(folder / "images" / "1.jpg")
    with pytest.raises(PsaqError, match="bears the name of"):
        segmentation(folder / "images", folder / "masks", segmenter)


def test_folders_that_are_not_there_or_empty_are_named(folder, segmenter):
    (folder / "empty").mkdir()
    for images, masks, complaint in (
        ("absent", "masks", "no such folder"),
        ("images", "absent", "no such folder"),
        ("empty", "masks", "holds no picture"),
    ):
        with pytest.raises(PsaqError, match=complaint):
            segmentation(folder / images, folder / masks, segmenter)
    with pytest.raises(PsaqError, match="ignore 300: must lie between 0 and 255"):
        segmentation(folder / "images", folder / "masks", segmenter, ignore=300)

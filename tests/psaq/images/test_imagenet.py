"""Image folders: whose class is whose, how an image is cropped, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from psaq.errors import PsaqError
from psaq.images.imagenet import imagenet, imagenet_wnids
from psaq.images.preprocessing import Preprocessing
from psaq.models.zoo import DataConfig, build_model, named_source

HALF = DataConfig(image_size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop_pct=1.0)


def picture(path, size=(48, 40), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path)


@pytest.fixture(scope="module")
def thousand():
    options = {"img_size": 32, "patch_size": 16, "embed_dim": 12, "depth": 1, "num_heads": 3}
    return build_model(named_source("vit_tiny_patch16_224", options))


def test_the_list_of_classes_is_imagenets():
    wnids = imagenet_wnids()
    assert len(wnids) == 1000
    assert (wnids["n01440764"], wnids["n02123045"], wnids["n15075141"]) == (0, 281, 999)
    assert list(wnids) == sorted(wnids)


def test_a_wnid_is_its_class_however_few_are_present(thousand, tmp_path):
    picture(tmp_path / "n15075141" / "b.JPEG")
    picture(tmp_path / "n02123045" / "a.JPEG")
    picture(tmp_path / "n02123045" / "deeper" / "c.png")
    dataset = imagenet(tmp_path, thousand)
    assert [(path.name, label) for path, label in dataset.samples] == [("a.JPEG", 281), ("c.png", 281), ("b.JPEG", 999)]
    image, label = dataset[0]
    assert image.shape == (3, 32, 32)
    assert label == 281


def test_other_folders_are_the_models_classes_in_order(vit, tmp_path):
    for index in range(10):
        picture(tmp_path / f"class{index}" / "x.png")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "class3" / "notes.txt").write_text("no image")
    assert [label for _, label in imagenet(tmp_path, vit).samples] == list(range(10))


def test_what_is_passed_over_is_counted(vit, tmp_path, capsys):
    for index in range(10):
        picture(tmp_path / f"class{index}" / "x.tif")
        (tmp_path / f"class{index}" / "._x.tif").write_bytes(b"")
    (tmp_path / "class3" / "y.gif").write_bytes(b"")
    dataset = imagenet(tmp_path, vit)
    assert len(dataset) == 10
    assert dataset.passed_over == {".gif": 1}
    assert "10 images, 1 passed over (.gif 1)" in capsys.readouterr().err
    (tmp_path / "class5" / "z.jpg").symlink_to("nowhere.jpg")
    with pytest.raises(PsaqError, match=r"class5/z\.jpg: is a link"):
        imagenet(tmp_path, vit)


def test_preprocessing_is_timms(tmp_path):
    picture(tmp_path / "x.png", (200, 200))
    for crop_pct in (0.875, 0.9, 1.0):
        config = DataConfig((56, 56), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), crop_pct=crop_pct)
        timms = create_transform(
            56, crop_pct=crop_pct, interpolation="bicubic", mean=config.mean, std=config.std, crop_mode="center"
        )
        with Image.open(tmp_path / "x.png") as image:
            torch.testing.assert_close(Preprocessing(config)(image), timms(image))


def test_an_image_of_the_right_size_is_cropped_not_resampled():
    pixels = np.arange(35 * 35 * 3, dtype=np.uint32).reshape(35, 35, 3).astype(np.uint8)
    config = DataConfig((32, 32), (0.5,) * 3, (0.5,) * 3, crop_pct=32 / 34.5)
    cropped = Preprocessing(config)(Image.fromarray(pixels))
    expected = torch.from_numpy(pixels[1:33, 1:33]).permute(2, 0, 1) / 255 * 2 - 1
    torch.testing.assert_close(cropped, expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P"])
def test_every_kind_of_image_becomes_rgb(thousand, tmp_path, mode):
    folder = tmp_path / "n01440764"
    folder.mkdir()
    name = "x.JPEG" if mode == "CMYK" else "x.png"
    Image.new("RGB", (40, 40), (250, 10, 10)).convert(mode).save(folder / name)
    assert imagenet(tmp_path, thousand)[0][0].shape == (3, 32, 32)


def test_an_elongated_image_is_cropped_at_its_centre():
    image = Image.new("RGB", (200, 32))
    image.paste((255, 255, 255), (84, 0, 116, 32))
    assert Preprocessing(HALF)(image).min() == 1


@pytest.mark.parametrize("crop_pct", [0.0, -1.0, 1.1, float("nan")])
def test_an_impossible_crop_is_named(thousand, tmp_path, crop_pct):
    picture(tmp_path / "n01440764" / "x.png")
    with pytest.raises(PsaqError, match="crop_pct"):
        imagenet(tmp_path, thousand, crop_pct)


def test_a_folder_that_is_not_there_is_named(thousand, tmp_path):
    with pytest.raises(PsaqError, match="nowhere"):
        imagenet(tmp_path / "nowhere", thousand)


def test_a_folder_without_classes_is_named(thousand, tmp_path):
    picture(tmp_path / "x.png")
    with pytest.raises(PsaqError, match="no class folders"):
        imagenet(tmp_path, thousand)


def test_classes_without_images_are_named(thousand, tmp_path):
    (tmp_path / "n01440764").mkdir()
    with pytest.raises(PsaqError, match="hold no image"):
        imagenet(tmp_path, thousand)


def test_classes_that_are_not_the_models_are_named(thousand, vit, tmp_path):
    for name in ("train", "val"):
        picture(tmp_path / name / "n01440764" / "x.png")
    for model, classes in ((thousand, 1000), (vit, 10)):
        with pytest.raises(PsaqError, match=rf"2 folders \(train, val, …\) for the model's {classes} classes"):
            imagenet(tmp_path, model)


@pytest.mark.parametrize("content", [b"", b"not an image"])
def test_a_damaged_image_is_named(thousand, tmp_path, content):
    picture(tmp_path / "n01440764" / "good.png")
    (tmp_path / "n01440764" / "bad.JPEG").write_bytes(content)
    with pytest.raises(PsaqError, match=r"bad\.JPEG"):
        imagenet(tmp_path, thousand)[0]


def test_a_truncated_image_is_named(thousand, tmp_path):
    path = tmp_path / "n01440764" / "cut.JPEG"
    picture(path, (200, 200))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(PsaqError, match=r"cut\.JPEG"):
        imagenet(tmp_path, thousand)[0]

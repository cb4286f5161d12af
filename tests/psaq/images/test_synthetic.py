"""The container of synthesised images: saving, loading, true colours."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from psaq.errors import PsaqError
from psaq.files import load_tensors, save_tensors
from psaq.images.synthetic import KIND, SyntheticImages, load_images, true_colours

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture
def images():
    pixels = torch.rand(3, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    normalised = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    history = {"loss": torch.tensor([[3.0, 2.0, 1.0]])}
    film = torch.zeros(2, 1, 3, 8, 10, dtype=torch.uint8)
    return SyntheticImages(normalised, torch.tensor([4, 0, 2]), MEAN, STD, history, film, {"seed": 7})


def test_everything_comes_back(images, tmp_path):
    images.save(tmp_path)
    for found in (load_images(tmp_path), load_images(tmp_path / "images.safetensors")):
        assert torch.equal(found.images, images.images)
        assert torch.equal(found.labels, images.labels)
        assert torch.equal(found.film, images.film)
        assert torch.equal(found.history["loss"], images.history["loss"])
        assert (found.mean, found.std, found.provenance) == (MEAN, STD, {"seed": 7})


def test_pictures_show_the_true_colours(images, tmp_path):
    images.save(tmp_path)
    picture = np.asarray(Image.open(tmp_path / "images" / "0000_class4.png"))
    pixels = images.images[0] * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    np.testing.assert_allclose(picture.transpose(2, 0, 1) / 255, pixels.numpy(), atol=0.5 / 255 + 1e-6)


def test_a_folder_used_before_holds_the_pictures_of_the_last_images_alone(images, tmp_path):
    others = [tmp_path / "images" / name for name in ("1234.png", "cat.png")]
    others[0].parent.mkdir()
    for file in others:
        file.write_bytes(b"of the user's")
    images.save(tmp_path)
    assert others[0].exists(), "nothing was saved here before"
    replace(images, images=images.images[:2], labels=torch.tensor([5, -1]), film=None, history={}).save(tmp_path)
    assert {file.name for file in (tmp_path / "images").iterdir()} == {"0000_class5.png", "0001.png", "cat.png"}


def test_colours_beyond_black_and_white_are_clamped():
    extreme = torch.tensor([-100.0, 100.0]).expand(1, 3, 1, 2)
    assert true_colours(extreme, MEAN, STD)[0, 0, 0].tolist() == [0, 255]


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(PsaqError, match=r"images\.safetensors.*no such file"):
        load_images(tmp_path)


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (4, [0, 1, 2]), (6, [0, 1, 2])])
def test_images_of_any_channels_come_back_and_show_what_a_screen_can(tmp_path, channels, shown):
    pixels = torch.rand(1, channels, 4, 5, generator=torch.Generator().manual_seed(0))
    images = SyntheticImages(pixels, torch.zeros(1, dtype=torch.long), (0.0,) * channels, (1.0,) * channels)
    images.save(tmp_path)
    assert torch.equal(load_images(tmp_path).images, pixels)
    picture = np.asarray(Image.open(tmp_path / "images" / "0000_class0.png"))
    assert np.array_equal(picture.transpose(2, 0, 1), images.true_colours()[0, shown].numpy())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("images", lambda images: images.index_fill(3, torch.tensor([2]), torch.nan)),
        ("images", lambda images: images + 40),
        ("images", lambda images: images[:, :2]),
        ("images", lambda images: images.to(torch.int32)),
        ("labels", lambda labels: labels[:2]),
        ("labels", lambda labels: labels - 9),
        ("labels", lambda labels: labels.float()),
        ("history.loss", lambda loss: loss * torch.inf),
        ("film", lambda film: film[..., :3]),
        ("speed", lambda _: torch.ones(1)),
        ("images", None),
        ("labels", None),
    ],
)
def test_images_that_cannot_be_are_refused(images, tmp_path, name, value):
    whole = replace(images, provenance={"config": {"pixel_range": "sound"}})
    tensors, header = load_tensors(whole.save(tmp_path), KIND)
    other = {**tensors, name: value(tensors.get(name))} if value else {k: v for k, v in tensors.items() if k != name}
    save_tensors(tmp_path / "images.safetensors", other, KIND, header)
    with pytest.raises(PsaqError, match=r"images\.safetensors.*synthesise anew"):
        load_images(tmp_path)


@pytest.mark.parametrize(
    "change", [{"std": [0.2, 0.0, 0.3]}, {"mean": [0.5]}, {"mean": ["a"] * 3}, {"provenance": 3}, {"speed": 1}]
)
def test_words_about_images_that_cannot_be_are_refused(images, tmp_path, change):
    tensors, header = load_tensors(images.save(tmp_path), KIND)
    save_tensors(tmp_path / "images.safetensors", tensors, KIND, {**header, **change})
    with pytest.raises(PsaqError, match=r"images\.safetensors.*synthesise anew"):
        load_images(tmp_path)

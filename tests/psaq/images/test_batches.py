"""One door for calibration images."""

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psaq.errors import PsaqError
from psaq.images.batches import gaussian_images, image_batches
from psaq.images.synthetic import SyntheticImages

IMAGES = torch.randn(7, 3, 4, 4, generator=torch.Generator().manual_seed(0))
SOURCES = {
    "tensor": IMAGES,
    "container": SyntheticImages(IMAGES, torch.zeros(7, dtype=torch.long), (0.5,) * 3, (0.5,) * 3),
    "batches": [IMAGES[:3], IMAGES[3:]],
    "labelled batches": [(IMAGES[:5], torch.zeros(5)), (IMAGES[5:], torch.zeros(2))],
}


@pytest.mark.parametrize("source", SOURCES)
@given(batch_size=st.integers(1, 9))
@settings(deadline=None, max_examples=9)
def test_every_source_yields_the_same_images_in_order(source, batch_size):
    batches = list(image_batches(SOURCES[source], batch_size))
    assert torch.equal(torch.cat(batches), IMAGES)
    assert max(len(batch) for batch in batches) <= batch_size


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(0, 3, 4, 4), "0 images"),
        ([], "0 images"),
        (None, "images None: must be"),
        ("runs/images", "psaq.load_images"),
        (torch.zeros(2, 1, 4, 4), r"\(2, 1, 4, 4\)"),
        (torch.zeros(3, 4, 4), r"\(3, 4, 4\)"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "uint8"),
        (torch.zeros(2, 4, 5, 3), r"their channels come last: images\.permute\(0, 3, 1, 2\)"),
        (torch.zeros(3, 4, 4), r"a single image is images\[None\]"),
        (torch.full((1, 3, 2, 2), float("nan")), "NaN"),
    ],
)
def test_what_is_no_image_is_refused(images, message):
    with pytest.raises(PsaqError, match=message):
        list(image_batches(images, 4))


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_images_have_the_models_channels(channels):
    images = torch.zeros(2, channels, 4, 4)
    assert torch.equal(*image_batches(images, 4, channels=channels), images)
    assert torch.equal(*image_batches(images, 4, channels=None), images)
    with pytest.raises(PsaqError, match=rf"\(2, {channels}, 4, 4\): must be \(images, 3, height, width\)"):
        list(image_batches(images, 4))
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, in_chans=channels)
    assert gaussian_images(model, 2).shape == (2, channels, 32, 32)


def test_noise_is_the_seeds(vit):
    assert torch.equal(gaussian_images(vit, 2, seed=1), gaussian_images(vit, 2, seed=1))
    assert not torch.equal(gaussian_images(vit, 2, seed=1), gaussian_images(vit, 2, seed=2))
    assert gaussian_images(vit, 2).shape == (2, 3, 32, 32)
    with pytest.raises(PsaqError, match="0 images"):
        gaussian_images(vit, 0)

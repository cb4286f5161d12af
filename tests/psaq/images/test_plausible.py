"""Calibration images that are not what the model takes are refused, or said once, with what was seen."""

import pytest
import torch
from torch import nn

from psaq.errors import PsaqError
from psaq.images.batches import batches_for
from psaq.images.synthetic import SyntheticImages
from psaq.models.description import describe
from psaq.models.zoo import data_config
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe

PIXELS = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def normalised(model: nn.Module) -> torch.Tensor:
    config = data_config(model)
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    return (PIXELS - mean) / std


def said(model, images, capsys, recipe=None):
    quantize(model, images, recipe or Recipe.paper(8, 8))
    return capsys.readouterr().err


def test_right_images_pass_without_a_word(vit, capsys):
    assert said(vit, normalised(vit), capsys) == ""
    noise = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert said(vit, noise, capsys) == ""


def test_pixels_up_to_255_are_refused(vit):
    with pytest.raises(PsaqError, match=r"images from 0\.\d+ to 25\d.*\[0, 255\].*from -1 to 1: \(pixels / 255"):
        quantize(vit, PIXELS * 255, Recipe.paper(8, 8))


def test_pixels_up_to_1_are_said_once(vit, capsys):
    words = said(vit, PIXELS.split(1), capsys)
    assert words.count("look like pixels in [0, 1]") == 1
    assert "from -1 to 1" in words


def test_a_model_that_takes_pixels_as_they_are_gets_them(vit, capsys):
    assert said(describe(vit, mean=0.0, std=1.0), PIXELS, capsys) == ""
    assert said(describe(vit, mean=0.0, std=1 / 255), PIXELS * 255, capsys) == ""


def test_images_of_one_colour_are_counted(vit, capsys):
    images = normalised(vit)
    images[1] = torch.tensor([-0.5, 0.0, 0.5])[:, None, None]
    assert "1 of 3 calibration images are of one colour" in said(vit, images, capsys)


def test_one_image_alone_is_said_where_weights_are_fitted_to_it(vit, capsys):
    image = normalised(vit)[:1]
    assert "1 calibration image alone" in said(vit, image, capsys, Recipe.accurate(8, 8))
    assert said(vit, image, capsys) == ""


@pytest.mark.parametrize("images", [(PIXELS * 255).to(torch.uint8), PIXELS.permute(0, 2, 3, 1), PIXELS[0]])
def test_integers_and_other_layouts_are_refused(vit, images):
    with pytest.raises(PsaqError, match=r"must be floating point|come last|images\[None\]"):
        quantize(vit, images, Recipe.paper(8, 8))


def test_images_of_another_models_normalisation_are_carried_over(vit):
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    others = (PIXELS - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    images = SyntheticImages(others, torch.zeros(3, dtype=torch.long), mean, std)
    torch.testing.assert_close(torch.cat([*batches_for(vit, images, 2)]), normalised(vit))

"""Start noise: white, of a photograph's spectrum, colours and contrast, and leaves with a photograph's edges."""

import pytest
import torch

from psaq.models.zoo import DataConfig
from psaq.synthesis import SynthesisConfig
from psaq.synthesis.loop import Synthesis
from psaq.synthesis.noise import dead_leaves, natural_noise, start_noise, white_noise

IMAGENET = DataConfig((64, 96), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = DataConfig((64, 96), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_amplitudes_fall_with_frequency_as_a_photographs():
    noise = natural_noise(16, DataConfig((128, 128), IMAGENET.mean, IMAGENET.std), draw())
    amplitudes = torch.fft.fft2(noise).abs().square().mean(dim=(0, 1)).sqrt()
    frequencies = torch.arange(2, 60)
    along_a_row = amplitudes[0, 2:60]
    slope = torch.linalg.lstsq(
        torch.stack([frequencies.log(), torch.ones(58)], dim=1), along_a_row.log()[:, None]
    ).solution[0]
    assert slope.item() == pytest.approx(-1.25, abs=0.1)


@pytest.mark.parametrize("start", [natural_noise, dead_leaves])
def test_contrast_and_colours_are_a_photographs(start):
    noise = start(16, IMAGENET, draw())
    torch.testing.assert_close(noise.std(dim=(1, 2, 3)), torch.ones(16))
    correlation = torch.stack([torch.corrcoef(image.flatten(1))[0, 1] for image in noise]).mean()
    assert 0.8 < correlation < 0.95


def test_leaves_have_edges_and_even_surfaces():
    """Kurtosis of the differences of neighbours: a Gaussian has 3, photographs about 20."""
    data = DataConfig((224, 224), IMAGENET.mean, IMAGENET.std)

    def kurtosis(images):
        steps = images.diff(dim=-1)
        return float(steps.pow(4).mean() / steps.square().mean().square())

    assert kurtosis(dead_leaves(8, data, draw())) > 10
    assert kurtosis(natural_noise(8, data, draw())) == pytest.approx(3, abs=0.3)


@pytest.mark.parametrize("channels", [1, 4])
def test_leaves_fill_images_of_any_shape_and_channels(channels):
    leaves = dead_leaves(3, DataConfig((40, 24), (0.5,) * channels, (0.5,) * channels), draw())
    assert leaves.shape == (3, channels, 40, 24)
    corners = leaves[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners.flatten(1).std(dim=1) > 0.1).all()
    assert not leaves[0].equal(leaves[1])


@pytest.mark.parametrize("start", [natural_noise, dead_leaves])
def test_every_model_sees_the_same_picture_in_its_own_normalisation(start):
    def colours(data):
        return start(2, data, draw()) * torch.tensor(data.std)[:, None, None] + _column(data.mean)

    torch.testing.assert_close(colours(IMAGENET), colours(HALVES))


def test_white_noise_is_standard_normal_whatever_the_model():
    expected = torch.randn((2, 3, 64, 96), generator=draw())
    assert white_noise(2, IMAGENET, draw()).equal(expected)
    assert white_noise(2, HALVES, draw()).equal(expected)


def test_grey_is_half_way_between_black_and_white_and_hardly_noisy():
    for data in (IMAGENET, HALVES):
        grey = start_noise("grey", 4, data, 0, 0) * torch.tensor(data.std)[:, None, None] + _column(data.mean)
        torch.testing.assert_close(grey, torch.full((4, 3, 64, 96), 0.5), atol=0.03, rtol=0)
        assert not grey[0].equal(grey[1])


@pytest.mark.parametrize("start", ["natural", "leaves"])
def test_each_batch_and_seed_has_its_own_noise(start):
    first = start_noise(start, 2, IMAGENET, 0, 0)
    assert first.equal(start_noise(start, 2, IMAGENET, 0, 0))
    assert not first.equal(start_noise(start, 2, IMAGENET, 0, 1))
    assert not first.equal(start_noise(start, 2, IMAGENET, 1, 0))


@pytest.mark.parametrize(
    ("config", "start"),
    [
        (SynthesisConfig(), "natural"),
        (SynthesisConfig(class_weight=0.0), "leaves"),
        (SynthesisConfig(class_weight=0.0, start="natural"), "natural"),
        (SynthesisConfig.paper(faithful=True), "white"),
        (SynthesisConfig.pictures(), "grey"),
    ],
)
def test_a_run_starts_from_the_noise_of_its_configuration(vit, config, start):
    synthesis = Synthesis(vit, config)
    assert synthesis.start(1, 3).pixels.equal(start_noise(start, 3, synthesis.data, 0, 1))


def _column(values):
    return torch.tensor(values)[:, None, None]

"""Fig. 2: images in true colours, under their class."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from psaq.errors import PsaqError
from psaq.figures.samples import choose_images, confidences, plot_film, plot_generated
from psaq.images.synthetic import NO_CLASS, SyntheticImages
from psaq.models.zoo import data_config
from psaq.synthesis import SynthesisConfig, synthesize


@pytest.fixture
def images(vit) -> SyntheticImages:
    return synthesize(vit, SynthesisConfig(num_images=4, steps=4, film_frames=3), progress=False)


def test_samples_are_in_true_colours_under_class_and_confidence(images, vit):
    figure = plot_generated(images, vit)
    config = data_config(vit)
    for axes, image, label in zip(figure.axes, images.images, images.labels, strict=True):
        pixels = image * torch.tensor(config.std)[:, None, None] + torch.tensor(config.mean)[:, None, None]
        shown = np.asarray(axes.images[0].get_array())
        np.testing.assert_allclose(shown, (pixels * 255).permute(1, 2, 0), atol=0.51)
        confidence = vit(image[None]).softmax(-1)[0, label].item()
        assert axes.get_xlabel() == f"class {int(label)}\n{confidence:.0%}"


def test_confidence_is_of_the_images_own_class(images, vit):
    with torch.no_grad():
        expected = [
            vit(image[None]).softmax(-1)[0, label] for image, label in zip(images.images, images.labels, strict=True)
        ]
    torch.testing.assert_close(confidences(vit, images), torch.stack(expected), atol=1e-5, rtol=1e-4)


def test_film_goes_from_noise_to_the_image(images, vit):
    figure = plot_film(images, vit)
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in panels[:3]] == ["step 0", "step 2", "step 4"]
    last = np.asarray(panels[2].images[0].get_array())
    np.testing.assert_array_equal(last, images.true_colours()[0].permute(1, 2, 0))


def test_classes_choose_images_and_their_film(images, vit):
    label = int(images.labels[2])
    kept = choose_images(images, vit, [str(label)])
    wanted = images.labels == label
    torch.testing.assert_close(kept.images, images.images[wanted])
    torch.testing.assert_close(kept.film, images.film[:, wanted])
    assert len(choose_images(images, vit, count=3)) == 3


def test_images_without_a_class_have_no_caption_beside_a_model_that_knows_classes(images, vit):
    unlabelled = replace(images, labels=torch.full_like(images.labels, NO_CLASS))
    assert not any(axes.get_xlabel() for axes in plot_generated(choose_images(unlabelled, vit), vit).axes)
    names = {f"class {number}" for number in range(10)}
    assert not names & {axes.get_ylabel() for axes in plot_film(unlabelled, vit).axes}
    with pytest.raises(PsaqError, match="synthesised for no class"):
        choose_images(unlabelled, vit, ["9"])
    some = replace(images, labels=torch.tensor([NO_CLASS, 2, 3, NO_CLASS]))
    with pytest.raises(PsaqError, match=r"there are 2 \(class 2\), 3 \(class 3\)$"):
        choose_images(some, vit, ["9"])

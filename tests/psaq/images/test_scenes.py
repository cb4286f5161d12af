"""Scenes: pure in seed and index, balanced, visible, and nothing but the object tells the class."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.data import DataLoader

from psaq.errors import PsaqError
from psaq.images.scenes import CLASS_NAMES, SIZE, SceneDataset, render_scenes, scene_batch
from psaq.models.zoo import ModelSource, build_model, load_model
from psaq.rendering.draws import Draws
from psaq.rendering.painter import paint

seeds = st.integers(0, 2**63 - 1)
indices = st.integers(0, 2**40)


@settings(deadline=None, max_examples=25)
@given(seed=seeds, wanted=st.lists(indices, min_size=1, max_size=20), position=st.data())
def test_a_scene_is_the_same_whatever_is_rendered_with_it(seed, wanted, position):
    place = position.draw(st.integers(0, len(wanted) - 1))
    together, labels = scene_batch(wanted, seed)
    alone, label = scene_batch([wanted[place]], seed)
    assert torch.equal(together[place], alone[0])
    assert labels[place] == label[0]


@settings(deadline=None, max_examples=10)
@given(seed=seeds, count=st.integers(1, 40))
def test_a_count_is_the_beginning_of_every_larger_count(seed, count):
    fewer, more = render_scenes(count, seed), render_scenes(count + 7, seed)
    assert torch.equal(fewer.images, more.images[:count])
    assert torch.equal(fewer.labels, more.labels[:count])
    assert torch.equal(fewer.coverage, more.coverage[:count])


@settings(deadline=None, max_examples=20)
@given(seed=seeds, pair=st.lists(indices, min_size=2, max_size=2, unique=True))
def test_other_indices_and_other_seeds_show_other_scenes(seed, pair):
    images, _ = scene_batch(pair, seed)
    elsewhere, _ = scene_batch(pair[:1], (seed + 1) % 2**63)
    assert (images[0] - images[1]).abs().mean() > 0.02
    assert (images[0] - elsewhere[0]).abs().mean() > 0.02


def test_the_bits_of_the_scenes_that_the_bundled_models_were_trained_on_never_change():
    images, labels = scene_batch(32, seed=0)
    digest = hashlib.sha256((images * 255).round().to(torch.uint8).numpy().tobytes() + labels.numpy().tobytes())
    assert digest.hexdigest() == "94ce77362d17253aae282d1ea281edfe31bdd8be340b3defac6b28ffaab09817"


@settings(deadline=None, max_examples=10)
@given(seed=seeds, first=indices)
def test_images_are_8_bit_levels_between_0_and_1(seed, first):
    images, labels = scene_batch(range(first, first + 8), seed)
    assert images.shape == (8, 3, SIZE, SIZE)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1
    levels = images.double() * 255
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert ((labels >= 0) & (labels < len(CLASS_NAMES))).all()


@settings(deadline=None, max_examples=20)
@given(seed=seeds, ten=st.integers(0, 2**30))
def test_every_aligned_ten_shows_each_class_once(seed, ten):
    _, labels = scene_batch(range(10 * ten, 10 * ten + 10), seed)
    assert sorted(labels.tolist()) == list(range(10))


def test_the_position_within_a_ten_does_not_tell_the_class():
    _, labels = scene_batch(range(0, 3000, 10), seed=1)
    counts = torch.bincount(labels, minlength=10)
    expected = 300 / 10
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert chi_square < 27.9  # 99.9 % of fair draws with 9 degrees of freedom stay below


def test_the_object_is_visible_in_every_scene():
    scenes = render_scenes(600, seed=2)
    assert scenes.coverage.dtype == torch.float32
    pixels = scenes.coverage.sum(dim=(1, 2))
    assert pixels.min() > 60
    assert pixels.max() < 0.5 * SIZE**2
    inside = scenes.coverage > 0.99
    contrast = torch.stack(
        [image[:, shown].std(dim=1).max() for image, shown in zip(scenes.images, inside, strict=True)]
    )
    assert contrast.min() > 0.04  # its pattern stands out of the grain (standard deviation 0.02)


def test_the_background_is_the_same_whatever_the_class():
    index = np.arange(20)
    reach = torch.zeros(20, SIZE, SIZE)
    renderings = [paint(Draws(index, 5), np.full(20, label)) for label in range(len(CLASS_NAMES))]
    for rendering in renderings:
        # The shadow falls up to 7 pixels wide, and an occluder hides the object in a strip of up to 9.
        covered = torch.from_numpy(rendering.coverage)
        reach = torch.maximum(reach, F.max_pool2d(covered[:, None], 33, stride=1, padding=16)[:, 0])
    background = (reach == 0)[:, None].expand(-1, 3, -1, -1)
    assert background.float().mean() > 0.02
    first = torch.from_numpy(renderings[0].images)[background]
    for rendering in renderings[1:]:
        assert torch.equal(torch.from_numpy(rendering.images)[background], first)


@pytest.mark.parametrize(("which", "seed"), [(0, 0), (-1, 0), ([], 0), ([3, -1], 0), (1, -1), (1, 2**63)])
def test_no_scenes_or_negative_numbers_are_refused(which, seed):
    with pytest.raises(PsaqError, match="give a count of at least 1"):
        scene_batch(which, seed)


def test_a_dataset_normalises_as_its_model_wants():
    dataset = SceneDataset(12, seed=3, model=load_model("micro_vit"))
    images, labels = scene_batch(12, seed=3)
    loaded, classes = next(iter(DataLoader(dataset, batch_size=12)))
    torch.testing.assert_close(loaded, (images - 0.5) / 0.25)
    assert torch.equal(classes, labels)
    image, label = dataset[7]
    assert torch.equal(image, loaded[7])
    assert label == labels[7]


def test_a_dataset_without_a_model_leaves_the_images_as_they_are():
    image, _ = SceneDataset(3, seed=3)[2]
    assert torch.equal(image, scene_batch([2], seed=3)[0][0])


@pytest.mark.parametrize("index", [-1, 3])
def test_a_dataset_ends_where_it_ends(index):
    with pytest.raises(IndexError):
        SceneDataset(3)[index]


@pytest.mark.parametrize("options", [{"img_size": 32}, {"img_size": SIZE, "num_classes": 7}])
def test_a_model_for_other_images_or_classes_is_refused(options):
    size = options["img_size"]
    shape = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 1, "num_classes": 10, **options}
    overlay = {"pretrained_cfg_overlay": {"input_size": [3, size, size]}}
    model = build_model(ModelSource("tiny", "vit_tiny_patch16_224", {**shape, **overlay}))
    with pytest.raises(PsaqError, match="scenes are 64×64 images of 10 classes"):
        SceneDataset(3, model=model)

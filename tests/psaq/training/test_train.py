"""Training the bundled models: it learns, it repeats, and it says what is wrong."""

import subprocess
import sys
from itertools import permutations

import pytest
import torch
from einops import reduce
from hypothesis import given, settings
from hypothesis import strategies as st

from psaq.errors import PsaqError
from psaq.files import read_json
from psaq.images.scenes import SIZE, render_scenes
from psaq.models.zoo import load_model
from psaq.training.first_weights import prepared
from psaq.training.patch_classes import PatchClassifier
from psaq.training.scenes import TrainingScenes, held_out_accuracy, normalised
from psaq.training.train import HELD_OUT_SEED, TrainMicro, train

SHORT = {"steps": 100, "scenes": 32, "batch_size": 16, "warmup_steps": 4, "held_out": 20, "ema_decay": 0.5}


@pytest.mark.parametrize(
    ("model", "steps"), [("micro_vit", 25), pytest.param("micro_swin", 100, marks=pytest.mark.repeat)]
)
def test_the_script_trains_measures_and_writes(model, steps, tmp_path):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in {**SHORT, "steps": steps}.items()]
    options.append("--no-bfloat16")  # which few processors compute fast
    command = [sys.executable, "-m", "psaq.training.train", "--model", model, "--out", tmp_path, *options]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "of 20 held-out scenes" in ran.stdout
    record = read_json(tmp_path / f"{model}.json")
    assert record["results"]["losses"][-1] < 0.7 * record["results"]["losses"][0]
    assert record["training"]["seed"] == 0
    trained = load_model(model, weights=tmp_path / f"{model}.safetensors")
    assert held_out_accuracy(trained, 20, HELD_OUT_SEED) == record["results"]["top1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{model}.json", f"{model}.safetensors"]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    options = {**SHORT, "steps": 3}
    one, again, other = (train(TrainMicro("micro_swin", seed=seed, **options))[0].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["head.fc.weight"], other["head.fc.weight"])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"model": "micro_mixer"}, "not bundled"),
        ({"steps": 0}, "--steps: 0 is not a positive number"),
        ({"scenes": -1}, "--scenes: -1"),
        ({"batch_size": 0}, "--batch-size: 0"),
        ({"threads": 0}, "--threads: 0"),
        ({"held_out": 0}, "--held-out: 0"),
        ({"seed": HELD_OUT_SEED}, "seed of the held-out scenes"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(options, complaint, tmp_path):
    with pytest.raises(PsaqError, match=complaint):
        TrainMicro(**{"model": "micro_vit", "out": tmp_path, **options}).run()
    assert not list(tmp_path.iterdir())


@settings(deadline=None, max_examples=25)
@given(images=st.integers(1, 3), classes=st.integers(2, 5), seed=st.integers(0, 2**31))
def test_the_patch_loss_is_the_weighted_cross_entropy_of_every_patch(images, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, 64, classes + 1, generator=generator, dtype=torch.float64)
    coverage = torch.rand(images, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (images,), generator=generator)
    total = weight = 0.0
    for image in range(images):
        for patch in range(64):
            covered = coverage[image, patch // 8, patch % 8].item()
            log_probability = logits[image, patch].log_softmax(0)
            entropy = -covered * log_probability[labels[image]] - (1 - covered) * log_probability[classes]
            total += (covered + 0.1) * entropy.item()
            weight += covered + 0.1
    loss = PatchClassifier(4, classes).loss(logits, coverage, labels)
    assert loss.item() == pytest.approx(total / weight, rel=1e-9)


@pytest.mark.parametrize("shape", [(2, 65, 12), (2, 8, 8, 12)])
def test_patches_are_classified_in_reading_order(shape):
    classifier = PatchClassifier(12, 10)
    features = torch.randn(shape)
    patches = features[:, 1:] if len(shape) == 3 else features.reshape(2, 64, 12)
    torch.testing.assert_close(classifier(features)[1, 20], classifier.linear(patches[1, 20]))


def test_coverage_is_mirrored_with_its_image():
    scenes = TrainingScenes.render(8, seed=3)
    shown = TrainingScenes(_as_image(scenes.coverage), scenes.labels, scenes.coverage)
    for _ in range(20):
        batch = shown.sample(5)
        seen = reduce(batch.images, "n c (y p) (x q) -> n y x", "mean", p=8, q=8)
        torch.testing.assert_close(seen, batch.coverage, atol=1 / 255, rtol=0)


def test_samples_show_every_mirror_image_and_order_of_channels():
    images = torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)
    images[0, :, 1, 0] = torch.tensor([0, 51, 255], dtype=torch.uint8)
    scenes = TrainingScenes(images, torch.zeros(1, dtype=torch.int64), torch.zeros(1, 8, 8))
    seen = set()
    for _ in range(300):
        image = scenes.sample(1).images[0]
        column = int(image.sum(dim=0).nonzero()[0, 1])
        seen.add((column, tuple(round(level, 1) for level in image[:, 1, column].tolist())))
    assert seen == {(column, order) for column in (0, SIZE - 1) for order in permutations((0.0, 0.2, 1.0))}


def test_the_patch_embedding_starts_as_whitening():
    torch.manual_seed(0)
    scenes = TrainingScenes.render(300, seed=4)
    model = prepared(load_model("micro_vit"), scenes)
    patches = model.patch_embed(normalised(scenes.images.float() / 255, model)).detach().flatten(0, 1)
    covariance = torch.cov(patches.T.double())
    torch.testing.assert_close(patches.mean(dim=0), torch.zeros(96), atol=1e-3, rtol=0)
    variances = covariance.diagonal()
    assert variances.max() <= 1
    assert variances[-10:].min() > 0.9
    assert (covariance - variances.diag()).abs().max() < 1e-3


def test_training_scenes_are_the_scenes_of_the_seed():
    rendered, scenes = TrainingScenes.render(70, seed=3), render_scenes(70, seed=3)
    torch.testing.assert_close(rendered.images.float() / 255, scenes.images)
    assert torch.equal(rendered.labels, scenes.labels)
    torch.testing.assert_close(rendered.coverage, reduce(scenes.coverage, "n (y p) (x q) -> n y x", "mean", p=8, q=8))


def test_images_are_normalised_as_the_model_was_trained():
    images = torch.rand(2, 3, SIZE, SIZE)
    torch.testing.assert_close(normalised(images, load_model("micro_vit")), (images - 0.5) / 0.25)


def _as_image(coverage):
    return (
        (255 * coverage)
        .round()
        .to(torch.uint8)[:, None]
        .repeat_interleave(8, 2)
        .repeat_interleave(8, 3)
        .expand(-1, 3, -1, -1)
    )

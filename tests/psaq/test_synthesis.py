"""Synthesis: the schedule, what it leaves alone, what it makes better, and resuming."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from psaq.errors import PsaqError
from psaq.files import load_tensors, save_tensors
from psaq.images.batches import gaussian_images
from psaq.images.synthetic import NO_CLASS
from psaq.losses import patch_similarity_entropy
from psaq.models.features import patch_features
from psaq.models.zoo import data_config, load_model
from psaq.synthesis import SynthesisConfig, synthesize
from psaq.synthesis.config import PIXEL_CLASS_WEIGHT
from psaq.synthesis.folder import synthesize_into
from psaq.synthesis.loop import Synthesis
from psaq.synthesis.state import KIND

SHORT = SynthesisConfig(num_images=3, batch_size=2, steps=6, checkpoint_every=2, film_frames=3)
PICTURES = SynthesisConfig.pictures(num_images=3, batch_size=2, steps=6, checkpoint_every=2, film_frames=3)


class KilledError(Exception):
    """Stands for the signal that ends a run."""


def test_entropy_rises_above_noise(vit):
    config = SynthesisConfig(num_images=2, steps=30, class_weight=0, smoothness_weight=0)
    images = synthesize(vit, config, progress=False)
    noise = gaussian_images(vit, 2)
    before = patch_similarity_entropy(patch_features(vit, noise)).mean(1).sum()
    after = patch_similarity_entropy(patch_features(vit, images.images)).mean(1).sum()
    assert after > before + 0.3


def test_class_loss_falls(vit):
    images = synthesize(
        vit, SynthesisConfig(num_images=2, steps=30, class_weight=100, smoothness_weight=0), progress=False
    )
    assert images.history["class_loss"][0, -1] < images.history["class_loss"][0, 0] - 0.1


def test_pixels_come_to_tell_of_their_classes():
    model = load_model("micro_segmenter")
    told = synthesize(model, SynthesisConfig(num_images=4, steps=10))
    untold = synthesize(model, SynthesisConfig(num_images=4, steps=10, class_weight=0))
    assert told.provenance["config"]["class_weight"] == PIXEL_CLASS_WEIGHT
    last, without = (float(images.history["class_loss"][0, -1]) for images in (told, untold))
    assert last < without - 0.1
    assert (told.labels == NO_CLASS).all()


def test_a_segmenters_images_from_before_its_class_loss_are_still_loaded(tmp_path):
    model, config = load_model("micro_segmenter"), SynthesisConfig(num_images=1, steps=2)
    made = synthesize_into(tmp_path / "run", model, replace(config, class_weight=0, start="natural"))
    assert torch.equal(synthesize_into(tmp_path / "run", model, config).images, made.images)


def test_what_has_no_class_loss_starts_from_leaves_and_folders_from_before_that_are_still_loaded(tmp_path):
    model, config = load_model("micro_detector"), SynthesisConfig(num_images=1, steps=2)
    assert synthesize(model, config).provenance["config"]["start"] == "leaves"
    before = synthesize_into(tmp_path / "run", model, replace(config, start="natural"))
    assert torch.equal(synthesize_into(tmp_path / "run", model, config).images, before.images)
    with pytest.raises(PsaqError, match="another start"):
        synthesize_into(tmp_path / "run", model, replace(config, start="leaves"))


def test_where_classes_guide_images_from_leaves_are_not_those_of_the_default(vit, tmp_path):
    config = SynthesisConfig(num_images=1, steps=2)
    synthesize_into(tmp_path / "run", vit, replace(config, start="leaves"))
    with pytest.raises(PsaqError, match="another start"):
        synthesize_into(tmp_path / "run", vit, config)


def test_the_model_is_left_as_it_was(vit):
    vit.train()
    vit.head.weight.requires_grad_(False)
    wanted = {name: parameter.requires_grad for name, parameter in vit.named_parameters()}
    synthesize(vit, SHORT, progress=False)
    assert vit.training
    assert {name: parameter.requires_grad for name, parameter in vit.named_parameters()} == wanted
    assert all(parameter.grad is None for parameter in vit.parameters())


def test_pixels_stay_between_black_and_white(swin):
    images = synthesize(swin, SHORT, progress=False)
    data = data_config(swin)
    pixels = images.images * torch.tensor(data.std)[:, None, None] + torch.tensor(data.mean)[:, None, None]
    assert pixels.min() >= -1e-6
    assert pixels.max() <= 1 + 1e-6


def test_batches_make_up_the_number_of_images(vit):
    images = synthesize(vit, SHORT, progress=False)
    assert images.images.shape == (3, 3, 32, 32)
    assert images.history["loss"].shape == (2, 6)
    assert images.film.shape == (3, 2, 3, 32, 32)
    assert len(images.labels) == 3


def test_the_same_seed_gives_the_same_bits_and_another_does_not(vit):
    first, again = synthesize(vit, SHORT, progress=False), synthesize(vit, SHORT, progress=False)
    other = synthesize(vit, SynthesisConfig(**{**vars(SHORT), "seed": 1}), progress=False)
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)


@pytest.mark.parametrize(("config", "killed_after"), [*((SHORT, after) for after in (1, 3, 6, 7, 11)), (PICTURES, 3)])
def test_a_killed_run_goes_on_to_the_same_bits(vit, tmp_path, monkeypatch, config, killed_after):
    whole = synthesize(vit, config, progress=False)
    checkpoint = tmp_path / "checkpoint"
    after_step, calls = Synthesis._after_step, []

    def kill(self, *arguments):
        after_step(self, *arguments)
        calls.append(1)
        if len(calls) == killed_after:
            raise KilledError

    monkeypatch.setattr(Synthesis, "_after_step", kill)
    with pytest.raises(KilledError):
        synthesize(vit, config, checkpoint=checkpoint, progress=False)
    monkeypatch.setattr(Synthesis, "_after_step", after_step)
    resumed = synthesize(vit, config, checkpoint=checkpoint, progress=False)
    assert torch.equal(resumed.images, whole.images)
    assert torch.equal(resumed.film, whole.film)
    assert all(torch.equal(resumed.history[name], whole.history[name]) for name in whole.history)


def test_a_checkpoint_of_version_0_1_goes_on_to_the_same_bits(vit, tmp_path, monkeypatch):
    """It has no resolutions, and its configuration none of the options that came with them."""
    whole = synthesize(vit, SHORT, progress=False)
    monkeypatch.setattr(Synthesis, "_check_finite", lambda _self, _recorder, batch: 1 / (batch.step < 5))
    with pytest.raises(ZeroDivisionError):
        synthesize(vit, SHORT, checkpoint=tmp_path, progress=False)
    monkeypatch.undo()
    file = tmp_path / "batch0000.safetensors"
    tensors, header = load_tensors(file, KIND)
    assert header["step"] == 4
    for name in ("noise", "resolutions", "variation"):
        del header["identity"]["config"][name]
    moments = {name: tensors[name][0] for name in ("mean_gradient", "mean_square")}
    save_tensors(file, {**tensors, **moments}, KIND, header)
    assert torch.equal(synthesize(vit, SHORT, checkpoint=tmp_path, progress=False).images, whole.images)


def test_a_checkpoint_of_another_run_is_refused(vit, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    synthesize(vit, SHORT, checkpoint=checkpoint, progress=False)
    with pytest.raises(PsaqError, match="another config"):
        synthesize(vit, SynthesisConfig(num_images=3, steps=5), checkpoint=checkpoint, progress=False)
    with torch.no_grad():
        vit.head.bias.add_(1)
    with pytest.raises(PsaqError, match="another model"):
        synthesize(vit, SHORT, checkpoint=checkpoint, progress=False)


def test_a_finished_folder_of_the_default_configuration_is_loaded(vit, tmp_path):
    config = SynthesisConfig(num_images=1, steps=2)
    assert config.class_weight is None
    made = synthesize_into(tmp_path / "run", vit, config, progress=False)
    again = synthesize_into(tmp_path / "run", vit, config, progress=False)
    assert torch.equal(again.images, made.images)
    explicit = SynthesisConfig(num_images=1, steps=2, class_weight=1.0)
    assert torch.equal(synthesize_into(tmp_path / "run", vit, explicit, progress=False).images, made.images)
    with pytest.raises(PsaqError, match="another class_weight"):
        synthesize_into(tmp_path / "run", vit, SynthesisConfig(num_images=1, steps=2, class_weight=2.0), progress=False)


def test_images_from_before_an_option_are_those_of_its_default(vit, tmp_path):
    config = SynthesisConfig(num_images=1, steps=2)
    made = synthesize_into(tmp_path, vit, config, progress=False)
    earlier = {name: value for name, value in made.provenance["config"].items() if name not in ("noise", "resolutions")}
    replace(made, provenance={**made.provenance, "config": earlier}).save(tmp_path)
    assert torch.equal(synthesize_into(tmp_path, vit, config, progress=False).images, made.images)
    with pytest.raises(PsaqError, match="another resolutions"):
        synthesize_into(tmp_path, vit, replace(config, resolutions=2), progress=False)


def test_finished_images_of_other_weights_are_refused(vit, tmp_path):
    made = synthesize_into(tmp_path, vit, SHORT)
    vit.head.bias.data[0] += 1
    with pytest.raises(PsaqError, match="other weights"):
        synthesize_into(tmp_path, vit, SHORT)
    earlier = {name: value for name, value in made.provenance.items() if name != "weights"}
    replace(made, provenance=earlier).save(tmp_path)
    assert torch.equal(synthesize_into(tmp_path, vit, SHORT).images, made.images), "version 0.1 did not name them"


def test_a_damaged_checkpoint_is_refused(vit, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    synthesize(vit, SHORT, checkpoint=checkpoint, progress=False)
    file = checkpoint / "batch0000.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(PsaqError, match="truncated"):
        synthesize(vit, SHORT, checkpoint=checkpoint, progress=False)


def test_nan_weights_stop_the_run(vit):
    with torch.no_grad():
        vit.blocks[1].mlp.fc2.bias.fill_(float("nan"))
    with pytest.raises((PsaqError, ValueError), match=r"(?i)nan|finite"):
        synthesize(vit, SHORT, progress=False)


def test_the_authors_schedule():
    paper = SynthesisConfig.paper()
    assert (paper.rounds, paper.steps, paper.num_images) == (2, 500, 32)
    faithful = SynthesisConfig.paper(faithful=True)
    assert (faithful.grid, faithful.smoothness, faithful.pixel_range) == ("reference", "reference", "reference")


def test_at_several_resolutions_images_have_larger_shapes():
    model, shares = load_model("micro_vit"), []
    for resolutions in (1, 6):
        config = SynthesisConfig.pictures(num_images=4, steps=15, resolutions=resolutions)
        images = synthesize(model, config, progress=False)
        shares.append((F.avg_pool2d(images.images, 8).var() / images.images.var()).item())
    assert shares[1] > 2 * shares[0]


def test_the_model_sees_fresh_noise_at_every_step_and_the_same_again(vit):
    synthesis = Synthesis(vit, SynthesisConfig(noise=0.4))
    even = torch.zeros(8, 3, 32, 32)
    first, next_ = (synthesis._noisy(even, 0, step) for step in (0, 1))
    assert first.std() == pytest.approx(0.4, rel=0.02)  # of 24,576 draws
    assert torch.equal(first, synthesis._noisy(even, 0, 0))
    assert abs((first * next_).mean()) < 0.01
    assert Synthesis(vit, SynthesisConfig())._noisy(even, 0, 0) is even


def test_the_rate_warms_up_and_falls_to_zero_in_every_round(vit):
    synthesis = Synthesis(vit, SynthesisConfig.paper())
    rates = [synthesis._rate(step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.2 / 100)
    assert rates[99] == rates[100] == pytest.approx(0.2)
    assert rates[499] < 1e-5
    assert rates[:500] == rates[500:]


def test_jitter_scales_with_the_image_and_grows_by_round(vit):
    synthesis = Synthesis(vit, SynthesisConfig(rounds=2, steps=200, jitter=70))
    ramp = torch.arange(32.0).expand(1, 3, 32, 32)
    shifts = {0: set(), 1: set()}
    for step in range(400):
        moved = synthesis._jitter(ramp, 0, step)[0, 0, 0]
        flipped = (moved[1] - moved[0]).item() in (-1.0, 31.0)
        shift = (moved.flip(0) if flipped else moved)[0].item()
        shifts[step // 200].add(shift if shift < 16 else shift - 32)
    assert {abs(s) for s in shifts[0]} <= set(range(11))
    assert max(abs(s) for s in shifts[1]) > 10


def test_faithful_target_is_the_authors_draw(vit):
    target = Synthesis(vit, SynthesisConfig.paper(faithful=True))._target_variation(0)
    assert 2500 <= target <= 3000
    per_image = Synthesis(vit, SynthesisConfig.paper())._target_variation(0)
    assert per_image == pytest.approx(target / math.sqrt(32) * 32 / 224 * 0.675 / (3 * 0.5), rel=1e-2)
    assert Synthesis(vit, SynthesisConfig.paper(variation=0.3))._target_variation(0) == pytest.approx(0.3 * per_image)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_images", 0),
        ("steps", 0),
        ("batch_size", -1),
        ("bandwidth", 0.0),
        ("warmup", 1.0),
        ("learning_rate", 0.0),
        ("noise", -1),
        ("resolutions", 0),
        ("start", "leafs"),
    ],
)
def test_options_out_of_range_are_named(option, value):
    with pytest.raises(PsaqError, match=option):
        SynthesisConfig(**{option: value})


@pytest.mark.parametrize(
    "wrong",
    [
        {"pixel_range": "Sound"},
        {"smoothness": "sounds"},
        {"class_token": "drop"},
        {"heads": "average"},
        {"grid": "coarse"},
        {"precision": "float16"},
        {"num_images": 1.5},
        {"steps": True},
        {"jitter": -1},
    ],
    ids=str,
)
def test_options_that_nothing_knows_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(PsaqError, match=f"^{name} .*: must be (one of|a whole number)"):
        SynthesisConfig(**wrong)


def test_a_model_in_float64_gives_what_it_gives_in_float32(vit):
    config = SynthesisConfig(num_images=1, steps=3)
    narrow, wide = (synthesize(copy.deepcopy(vit).to(kind), config).images for kind in (torch.float32, torch.float64))
    # Similarities are float32 either way; pixels of some units move by sums in another order.
    torch.testing.assert_close(wide, narrow, rtol=0, atol=1e-2)


def test_a_model_that_answers_with_other_classes_than_it_names_is_refused(vit):
    vit.head = nn.Identity()
    with pytest.raises(PsaqError, match="counts 10 classes and answers with 48 numbers"):
        synthesize(vit, SynthesisConfig(num_images=1, steps=1))

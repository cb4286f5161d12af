"""The image ablation: each set of images made and measured once, also when it was interrupted."""

from dataclasses import replace

import pytest
import torch
from noise_picture import noise_picture
from repeats import also
from torch.utils.data import Subset

from psaq.errors import PsaqError
from psaq.evaluation import evaluate
from psaq.experiments import image_ablation
from psaq.experiments.image_ablation import (
    CHANGES,
    NATURAL,
    NOISE,
    REAL,
    RECIPES,
    ImageAblation,
    Row,
    entropy_sum,
)
from psaq.experiments.image_variants import OBJECTIVES, HalfThePatches, NoEntropy
from psaq.experiments.rows import read_rows
from psaq.images.batches import gaussian_images
from psaq.images.imagenet import imagenet
from psaq.images.synthetic import load_images
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe
from psaq.synthesis import SynthesisConfig, synthesize
from psaq.synthesis.folder import synthesize_into
from psaq.synthesis.loop import Synthesis

FEW = {"num_images": 2, "steps": 3}


@pytest.fixture
def options(vit, tmp_path, monkeypatch):
    monkeypatch.setattr(image_ablation, "load_model", lambda *_: vit)
    monkeypatch.setattr(image_ablation, "CHANGES", {name: {**change, **FEW} for name, change in CHANGES.items()})
    for index in range(10):
        folder = tmp_path / "val" / f"class{index}"
        folder.mkdir(parents=True)
        noise_picture((40, 40), 30 + 10 * index).save(folder / "a.png")
    return ImageAblation(
        tmp_path / "unused",
        tmp_path / "val",
        tmp_path / "val",
        changes=("as it is", "class weight 10"),
        runs=tmp_path / "runs",
        out=tmp_path / "table.csv",
    )


def test_a_set_is_made_by_its_configuration_and_measured_as_evaluate_does(options, vit):
    options.run()
    rows = read_rows(options.out, Row)
    assert [(row.change, row.recipe) for row in rows] == [(c, r) for c in options.changes for r in RECIPES]
    images = synthesize(vit, SynthesisConfig(class_weight=10.0, **FEW), progress=False)
    dataset = Subset(imagenet(options.val, vit, options.crop_pct), range(0, 10, 3))
    expected = evaluate(quantize(vit, images, RECIPES["W8A8 paper"]), dataset, vit)
    row = rows[-1]
    assert (row.images, row.steps, row.n) == (2, 3, 4)
    assert (row.top1, row.agreement) == (expected.top1, expected.agreement)
    assert row.logit_sqnr == pytest.approx(expected.logit_sqnr, abs=1e-3)
    assert row.entropy == pytest.approx(entropy_sum(vit, images.images), abs=1e-3)


def test_references_are_not_synthesised(options, vit):
    replace(options, changes=(NOISE, NATURAL, REAL), seeds=(3, 0)).run()
    rows = read_rows(options.out, Row)[:: len(RECIPES)]
    assert [(row.change, row.seed, row.images, row.steps) for row in rows] == [
        (NOISE, 3, 32, 0),
        (NOISE, 0, 32, 0),
        (NATURAL, 3, 32, 0),
        (NATURAL, 0, 32, 0),
        (REAL, 0, 10, 0),  # all that are there; no seed makes them others
    ]
    assert rows[0].entropy == pytest.approx(entropy_sum(vit, gaussian_images(vit, 32, 3)), abs=1e-3)


def test_rows_and_images_that_are_there_are_kept(options, monkeypatch):
    replace(options, changes=("as it is",)).run()
    before = options.out.read_text()
    made = []
    monkeypatch.setattr(image_ablation, "synthesize_by", lambda synthesis: made.append(synthesis))
    replace(options, changes=("as it is",)).run()
    assert options.out.read_text() == before
    options.out.unlink()
    replace(options, changes=("as it is",)).run()
    assert options.out.read_text() == before
    assert made == []


def test_rows_of_an_earlier_recipe_are_measured_again(options, monkeypatch):
    replace(options, changes=("as it is",)).run()
    before = read_rows(options.out, Row)
    monkeypatch.setitem(RECIPES, "W8A8 paper", Recipe.paper(8, 8, scope="linear"))
    replace(options, changes=("as it is",)).run()
    after = read_rows(options.out, Row)
    assert after[:2] == before[:2]
    assert [(row.change, row.recipe) for row in after] == [(row.change, row.recipe) for row in before]
    assert after[2].digest == RECIPES["W8A8 paper"].digest != before[2].digest


def test_images_of_another_configuration_are_refused(options, vit):
    synthesize_into(options.runs / "as_it_is-seed0", vit, SynthesisConfig(num_images=1, steps=1), progress=False)
    with pytest.raises(PsaqError, match="another configuration"):
        options.run()


def test_an_unknown_change_is_refused(options):
    with pytest.raises(PsaqError, match="choose from noise"):
        replace(options, changes=("no such",)).run()


@pytest.mark.parametrize("change", [*OBJECTIVES][:2] + also(*[*OBJECTIVES][2:]))
def test_every_objective_leads_to_other_images(options, vit, change):
    replace(options, changes=(change,)).run()
    images = load_images(options.runs / f"{change.replace(' ', '_')}-seed0")
    usual = synthesize(vit, SynthesisConfig(**FEW), progress=False)
    assert images.labels.equal(usual.labels)
    assert not images.images.equal(usual.images)


def test_without_entropy_the_loss_is_the_other_two(vit):
    synthesis = NoEntropy(vit, SynthesisConfig(**FEW))
    history, config = image_ablation.synthesize_by(synthesis).history, synthesis.config
    others = config.class_weight * history["class_loss"] + config.smoothness_weight * history["smoothness_loss"]
    torch.testing.assert_close(history["loss"], others)


def test_half_of_the_patches_are_seen_and_no_hook_stays(vit):
    seen, synthesis = [], HalfThePatches(vit, SynthesisConfig(**FEW))
    hook = vit.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[:2])))
    image_ablation.synthesize_by(synthesis)
    hook.remove()
    assert seen[-3:] == [(2, 1 + 8)] * 3
    assert all(len(tokens) == 2 and tokens[0] == 1 for tokens in seen[:-3]), "beside the steps, one image is traced"
    image_ablation.synthesize_by(Synthesis(vit, SynthesisConfig(**FEW)))
    assert not vit.norm_pre._forward_pre_hooks

"""The ablation of evolutions: every cell once, on a start that variants share where they begin alike."""

from dataclasses import replace

import pytest
import torch

from psaq.evaluation import evaluate
from psaq.evolution import EvolutionConfig, evolve
from psaq.evolution.loop import Evolution
from psaq.experiments import evolution
from psaq.experiments.evolution import VARIANTS, Ablation, Result
from psaq.experiments.rows import read_rows
from psaq.experiments.starts import STUDENT, SharedStart
from psaq.quantization.recipes import Recipe
from psaq.tables.labelled import ImageSource

QUICK = {"num_images": 4, "image_steps": 2, "kept_aside": 4, "steps": 2, "batch_size": 4}
RECIPE = Recipe.accurate(4, 4)


def same(one, other):
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


@pytest.fixture
def options(vit, tmp_path, monkeypatch):
    quick = {name: {**QUICK, **VARIANTS[name]} for name in ("evolved", "entropy off", "class prior off")}
    monkeypatch.setattr(evolution, "VARIANTS", quick)
    monkeypatch.setattr(evolution, "load_model", lambda *_: vit)
    monkeypatch.setattr(ImageSource, "evaluation", lambda *_: SCENES)
    places = {"runs": tmp_path / "runs", "out": tmp_path / "evolution.csv"}
    return Ablation(variants=tuple(quick), precisions=("W4A4",), seeds=(0,), minutes=1e-3, **places)


SCENES = [
    (image, label) for label, image in enumerate(torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
]


def test_cells_are_measured_as_evaluate_does_and_once(options, vit, monkeypatch):
    replace(options, variants=("evolved",)).run()
    (first,) = read_rows(options.out, Result)
    options.run()
    rows = read_rows(options.out, Result)
    assert [row.variant for row in rows] == ["evolved", "entropy off", "class prior off"]
    assert rows[0] == first
    config = EvolutionConfig(**QUICK, rounds=1, minutes=1e-3)
    qmodel, images = evolve(vit, RECIPE, config)
    report = evaluate(qmodel, SCENES, vit)
    assert (first.top1, first.agreement) == (round(report.top1, 2), round(report.agreement, 2))
    assert first.best_round == images.provenance["best_round"]
    monkeypatch.setattr(evolution, "evolve", None)  # nothing is left to measure
    options.run()


def test_variants_that_begin_alike_share_a_start_and_others_do_not(options):
    options.run()
    shared = sorted(folder.name for folder in (options.runs / "starts").iterdir())
    assert len(shared) == 2  # with classes, and without
    for variant in ("evolved", "entropy-off"):
        student = options.runs / f"micro_vit-{variant}-W4A4-seed0" / STUDENT
        assert student.read_bytes() in {file.read_bytes() for file in (options.runs / "starts").glob("*/*.safetensors")}


def test_real_images_are_learned_from_once_since_a_further_seed_teaches_the_same(options, vit):
    both = replace(options, variants=("evolved", "real images"), seeds=(0, 1))
    assert [cell for cell in both._cells() if cell[0] == "real images"] == [("real images", "W4A4", 0)]
    pictures, students = torch.stack([image for image, _ in SCENES]), []
    for seed in (0, 1):
        run = Evolution(vit, RECIPE, EvolutionConfig(rounds=1, seed=seed, **QUICK), pictures)
        run.run()
        students.append(run.state.student)
    assert all(torch.equal(tensor, students[1][name]) for name, tensor in students[0].items())


def test_an_evolution_from_a_shared_start_is_the_one_that_made_its_own(vit, tmp_path):
    config = EvolutionConfig(rounds=1, **QUICK)
    start = SharedStart.find(tmp_path / "starts", vit, RECIPE, config, "synthesised")
    with start.shared_with(tmp_path / "first"):  # there is nothing yet
        alone, _ = evolve(vit, RECIPE, config, folder=tmp_path / "first")
    with start.shared_with(tmp_path / "second"):
        assert start.student.read_bytes() == (tmp_path / "second" / STUDENT).read_bytes()
        assert same(evolve(vit, RECIPE, config, folder=tmp_path / "second")[0], alone)


@pytest.mark.parametrize(
    ("options", "images", "student"),
    [
        ({"entropy_weight": 0.0}, True, True),
        ({"reconstruction_steps": 3}, True, False),
        ({"class_weight": 0.0}, False, False),
        ({"seed": 1}, False, False),
        ({"kept_aside": 5}, False, False),
    ],
)
def test_what_a_start_depends_on(vit, tmp_path, options, images, student):
    config = EvolutionConfig(**QUICK)
    one = SharedStart.find(tmp_path, vit, RECIPE, config, "synthesised")
    other = SharedStart.find(tmp_path, vit, RECIPE, replace(config, **options), "synthesised")
    assert (one.images == other.images, one.student == other.student) == (images, student)
    assert one.student != SharedStart.find(tmp_path, vit, RECIPE, config, "real").student

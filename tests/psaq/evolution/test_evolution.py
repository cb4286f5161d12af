"""Images and student in turns: the better state is kept, everything repeats, goes on, and is left as it was."""

import copy
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from dense_makes import dense_model
from torch import nn

import psaq
from psaq.errors import PsaqError
from psaq.evolution import EvolutionConfig, evolve
from psaq.evolution.loop import STATE, Evolution
from psaq.quantization.model.layers import QuantLinear
from psaq.quantization.passes.distillation import Pair

QUICK = EvolutionConfig(rounds=2, num_images=4, image_steps=2, kept_aside=4, steps=3, batch_size=4)
RECIPE = psaq.Recipe.accurate(3, 4, "linear", collages=1, flat_copies=2)


class StoppedError(Exception):
    """What stops a turn."""


def same(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def test_the_best_round_is_what_comes_back(vit):
    before = copy.deepcopy(vit.state_dict())
    qmodel, images = evolve(vit, RECIPE, QUICK)
    rounds = images.provenance["rounds"]
    assert [each["number"] for each in rounds] == [0, 1, 2]
    sqnr = [each["image_sqnr"] for each in rounds]
    assert images.provenance["best_round"] == sqnr.index(max(sqnr))
    assert len(images) == 4 * 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in vit.state_dict().items())
    assert not any(module._forward_hooks for module in vit.modules())
    for layer in (module for module in qmodel.modules() if isinstance(module, QuantLinear)):
        torch.testing.assert_close(layer.weight_quantizer(layer.weight), layer.weight, rtol=0, atol=0)


def test_where_no_round_helps_it_is_the_recipes_own_result(vit):
    qmodel, images = evolve(vit, RECIPE, replace(QUICK, float_rate=10.0))
    assert images.provenance["best_round"] == 0
    assert same(qmodel, psaq.quantize(vit, psaq.synthesize(vit, QUICK.synthesis, progress=False), RECIPE))


@pytest.mark.parametrize("interrupted", [1, 2], ids="in round {}".format)
def test_stopped_in_any_turn_it_goes_on_to_the_same_bits(vit, tmp_path, monkeypatch, interrupted):
    whole, whole_images = evolve(vit, RECIPE, QUICK)

    turns, teach = [], Pair.teach

    def stopping(*arguments, **options):
        turns.append(arguments)
        if len(turns) == interrupted:
            raise StoppedError
        return teach(*arguments, **options)

    monkeypatch.setattr(Pair, "teach", stopping)
    with pytest.raises(StoppedError):
        evolve(vit, RECIPE, QUICK, folder=tmp_path)
    monkeypatch.undo()
    qmodel, images = evolve(vit, RECIPE, QUICK, folder=tmp_path)
    assert same(qmodel, whole)
    assert torch.equal(images.images, whole_images.images)
    assert images.provenance == whole_images.provenance


def test_an_evolution_at_its_end_goes_on_for_more_rounds(vit, tmp_path):
    whole, whole_images = evolve(vit, RECIPE, QUICK)
    evolve(vit, RECIPE, replace(QUICK, rounds=1), folder=tmp_path)
    qmodel, images = evolve(vit, RECIPE, QUICK, folder=tmp_path)
    assert same(qmodel, whole)
    assert torch.equal(images.images, whole_images.images)
    assert images.provenance == whole_images.provenance
    with pytest.raises(PsaqError, match=r"has 2 rounds, more than 1; ask for as many at least, or name another"):
        evolve(vit, RECIPE, replace(QUICK, rounds=1), folder=tmp_path)


def test_one_compiled_evolution_after_another_learns_by_its_own_loss(vit, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    losses = {}
    for compiled in (False, True):
        for weight in (0.0, 1.0):
            config = replace(QUICK, rounds=1, block_weight=weight, compiled=compiled)
            losses[compiled, weight] = evolve(vit, RECIPE, config)[1].provenance["rounds"][1]["student_loss"]
    assert losses[True, 0.0] == pytest.approx(losses[False, 0.0], rel=1e-4)
    assert losses[True, 1.0] == pytest.approx(losses[False, 1.0], rel=1e-4)
    assert losses[True, 1.0] > 1.1 * losses[True, 0.0]


def test_a_detector_is_not_compiled():
    with pytest.raises(PsaqError, match=r"compiled: torch\.compile takes no model that takes a list of images"):
        evolve(psaq.load_model("micro_detector"), RECIPE, replace(QUICK, compiled=True))


@pytest.mark.parametrize("is_given", [False, True], ids=["synthesised", "given"])
def test_what_cannot_be_meant_is_said_before_anything_is_done(vit, tmp_path, is_given):
    folder = tmp_path / "run"
    given = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) if is_given else None
    with pytest.raises(PsaqError, match="recipe 'W4A8': must be a Recipe"):
        evolve(vit, "W4A8", QUICK, images=given, folder=folder)
    with pytest.raises(PsaqError, match=r"config 3: must be an EvolutionConfig"):
        evolve(vit, RECIPE, 3, images=given, folder=folder)
    with pytest.raises(PsaqError, match=r"override 'haed': fits no layer of the model; did you mean head"):
        evolve(vit, replace(RECIPE, overrides=[("haed", 8, 8)]), QUICK, images=given, folder=folder)
    assert not folder.exists()


def test_a_folder_of_another_evolution_is_refused(vit, tmp_path):
    evolve(vit, RECIPE, replace(QUICK, rounds=1), folder=tmp_path)
    with pytest.raises(PsaqError, match=r"config\.steps 3, not 2.*name another folder"):
        evolve(vit, RECIPE, replace(QUICK, rounds=1, steps=2), folder=tmp_path)
    with pytest.raises(PsaqError, match=r"recipe\.weight_scales 'squared_error', not 'max'.*name another folder"):
        evolve(vit, psaq.Recipe.paper(4, 4), replace(QUICK, rounds=1), folder=tmp_path)


def test_a_folder_whose_start_was_another_models_is_refused(vit, tmp_path, monkeypatch):
    """Also where it was stopped before anything but the start was kept."""
    monkeypatch.setattr(Evolution, "run", lambda self: self.student)
    monkeypatch.setattr(Evolution, "result", lambda self: (self.student, None))
    evolve(vit, RECIPE, QUICK, folder=tmp_path)
    with torch.no_grad():
        vit.head.weight.add_(1)
    with pytest.raises(PsaqError, match=r"another run \(model .*; name another folder"):
        evolve(vit, RECIPE, QUICK, folder=tmp_path)


def test_new_images_make_the_two_disagree_more_than_others(vit):
    """What the images' turn is for: with the disagreement they are harder for the student than without."""
    config = replace(QUICK, num_images=8, image_steps=20)
    apart = {}
    for weight in (0.0, 20.0):
        evolution = Evolution(vit, RECIPE, replace(config, disagreement_weight=weight))
        made = evolution._new_images(1)
        apart[weight] = -psaq.evaluate(evolution.student, made.images, reference=vit).logit_sqnr
    assert apart[20.0] > apart[0.0]


def test_images_that_are_given_are_all_that_the_student_learns_from(vit):
    given = torch.randn(6, 3, 32, 32)
    _, images = evolve(vit, RECIPE, QUICK, images=iter(given.split(4)))
    assert torch.equal(images.images, given)
    assert images.film is None
    assert images.provenance["passes"]["images"] == 0


def test_without_refresh_only_the_first_round_makes_images(vit):
    _, images = evolve(vit, RECIPE, replace(QUICK, refresh=False))
    assert [each["entropy"] is None for each in images.provenance["rounds"]] == [True, False, True]
    assert len(images.film) == 1


def test_beyond_the_pool_the_oldest_give_way(vit):
    evolution = Evolution(vit, RECIPE, replace(QUICK, pool=6))
    first = evolution.state.pool
    evolution.run()
    assert len(evolution.state.pool) == 6
    assert not any(torch.equal(old, new) for old in first for new in evolution.state.pool)


@pytest.mark.parametrize(("minutes", "rounds"), [(1e-6, 1), (2.0, 3)])
def test_a_time_budget_is_planned_by_the_first_round(vit, monkeypatch, minutes, rounds):
    """The clock is looked at twice for the start and for every round: 30 s each, of which 2 minutes hold four."""
    clock = iter(range(0, 10**6, 30))
    evolution = Evolution(vit, RECIPE, replace(QUICK, minutes=minutes, image_steps=1, steps=1))
    monkeypatch.setattr("psaq.evolution.loop.time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    evolution.run()
    assert len(evolution.state.rounds) - 1 == rounds


def test_more_minutes_are_planned_by_the_last_round(vit, monkeypatch, tmp_path):
    config = replace(QUICK, image_steps=1, steps=1)
    rounds = []
    for minutes in (1.0, 1.0, 2.5, 0.1):
        clock = iter(range(0, 10**6, 30))
        evolution = Evolution(vit, RECIPE, replace(config, minutes=minutes), folder=tmp_path)
        monkeypatch.setattr(
            "psaq.evolution.loop.time", SimpleNamespace(perf_counter=lambda now=clock: float(next(now)))
        )
        evolution.run()
        rounds.append(len(evolution.state.rounds) - 1)
    assert rounds == [1, 1, 4, 4], "30 s for the start, and for every round"


@pytest.mark.parametrize("options", [{"measure": "distance", "block_weight": 0.0}, {"attention_weight": 1.0}], ids=str)
def test_other_forms_run(swin, options):
    _, images = evolve(swin, RECIPE, replace(QUICK, rounds=1, **options))
    assert images.images.isfinite().all()


def test_weights_in_groups_evolve_and_go_on(vit, tmp_path):
    recipe, config = replace(RECIPE, group=32), replace(QUICK, rounds=1)
    qmodel, _ = evolve(vit, recipe, config, folder=tmp_path)
    assert qmodel.get_submodule("blocks.0.attn.qkv.weight_quantizer").scale.shape == (144, 2)
    assert same(evolve(vit, recipe, config, folder=tmp_path)[0], qmodel)


@pytest.mark.parametrize("name", ["Swin FCOS", "UperNet", "YOLOS"])
def test_boxes_and_pixels_evolve_by_what_they_answer(name):
    model = dense_model(name)
    config = replace(QUICK, rounds=1, num_images=2, image_steps=1, kept_aside=2, steps=1, batch_size=2)
    qmodel, images = evolve(model, psaq.Recipe.paper(4, 8), config)
    assert images.images.isfinite().all()
    assert psaq.evaluate(qmodel, images.images, reference=model).agreement is not None


def test_half_precision_is_trained_in_float32_and_comes_back_as_it_was(vit):
    qmodel, _ = evolve(vit.bfloat16(), RECIPE, replace(QUICK, rounds=1))
    assert {parameter.dtype for parameter in qmodel.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in vit.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds 0: must be a whole number, at least 1"),
        ({"steps": 1.5}, "steps 1.5: must be a whole number"),
        ({"minutes": 0}, "minutes 0: must be positive"),
        ({"minutes": float("nan")}, "minutes nan: must be positive"),
        ({"disagreement_weight": -1.0}, "disagreement_weight -1.0: must be a finite number"),
        ({"measure": "angle"}, "measure 'angle': must be one of divergence, distance"),
        ({"task": "captions"}, "captions"),
        ({"start": "leafs"}, "start 'leafs': must be one of leaves, natural, white, grey"),
        ({"reconstruction_steps": -1}, "reconstruction_steps -1"),
        ({"weight_rate": -0.1}, "weight_rate -0.1: must be a finite number"),
        ({"class_weight": float("inf")}, "class_weight inf: must be a finite number"),
        ({"compiled": True, "attention_weight": 1.0}, "compiled True: must be off beside attention_weight"),
        ({"arithmetic": "float16"}, "arithmetic 'float16': must be one of auto, float32, bfloat16"),
    ],
)
def test_what_cannot_be_is_refused_by_name(options, message):
    with pytest.raises(PsaqError, match=message):
        EvolutionConfig(**options)


def test_both_turns_multiply_as_they_are_told_to(vit):
    told = replace(QUICK, arithmetic="bfloat16")
    assert Evolution(vit, RECIPE, told).lesson.precision == told.synthesis.precision == "bfloat16"


@pytest.mark.parametrize(("bits", "rate"), [(4, 0.01), (8, 0.000625)])
def test_a_range_moves_by_a_part_of_its_own_level(vit, bits, rate):
    """Of 256 levels a hundredth of the range would be two and a half."""
    lesson = Evolution(vit, psaq.Recipe.accurate(4, bits), QUICK).lesson
    assert lesson.rates.ranges == pytest.approx(rate)


@pytest.mark.parametrize(
    ("bits", "told", "rate"), [(4, None, 0), (3, None, 0.02), (2, None, 0.02), (3, 0.0, 0), (4, 0.01, 0.01)]
)
def test_weights_of_few_bits_move_unless_they_are_told_otherwise(vit, bits, told, rate):
    evolution = Evolution(vit, psaq.Recipe.accurate(bits, 8), replace(QUICK, weight_rate=told))
    assert evolution.lesson.rates.weights == rate


def test_the_cost_counts_every_turn():
    passes = EvolutionConfig(num_images=10, kept_aside=5, image_steps=4, steps=6, batch_size=3).passes(2, examined=25)
    assert passes == {"start": 60.0, "images": 160.0, "student": 48.0, "judging": 60.0}


def test_a_damaged_state_is_refused_by_name(vit, tmp_path):
    evolve(vit, RECIPE, replace(QUICK, rounds=1), folder=tmp_path)
    file = tmp_path / STATE
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content)
    with pytest.raises(PsaqError, match=r"evolution\.safetensors"):
        evolve(vit, RECIPE, replace(QUICK, rounds=1), folder=tmp_path)


def test_a_student_that_was_read_starts_where_it_was_made(vit, tmp_path):
    recipe = psaq.Recipe.paper(3, 8)
    made, kept, read = (Evolution(vit, recipe, QUICK, folder=folder).student for folder in (None, tmp_path, tmp_path))
    assert same(made, kept)
    assert same(kept, read)

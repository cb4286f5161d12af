"""Threads that hold one model: none sees what another borrows of it, and all is given back, after an error, too."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from psaq.density.measure import patch_similarity_density
from psaq.errors import PsaqError
from psaq.evaluation import evaluate
from psaq.models.borrowing import borrowed, evaluating, only_here
from psaq.models.features import example_image, patch_features, record_patch_features
from psaq.models.trace import trace
from psaq.models.zoo import load_model
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe
from psaq.synthesis import SynthesisConfig, synthesize
from psaq.synthesis.loop import frozen

CONFIGS = [SynthesisConfig(num_images=2, steps=4, seed=seed) for seed in range(4)]
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1


def at_once(*works):
    """What each work returns, all of them in threads that start together."""
    start = threading.Barrier(len(works))

    def run(work):
        start.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result() for future in [pool.submit(run, work) for work in works]]


def holdings(model: nn.Module):
    """What there is to be borrowed of a model."""
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), sorted(vars(m))) for m in model.modules()]
    return hooks, [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]


def test_threads_that_synthesise_from_one_model_make_what_they_make_alone(vit):
    alone = [synthesize(vit, config, progress=False).images for config in CONFIGS]
    before = holdings(vit.train())
    together = at_once(*(lambda config=config: synthesize(vit, config, progress=False).images for config in CONFIGS))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    assert holdings(vit) == before


def test_all_kinds_of_work_at_once_are_each_as_alone(vit):
    recipe = Recipe.accurate(4, 8)
    works = [
        lambda: synthesize(vit, CONFIGS[0], progress=False).images,
        lambda: quantize(vit, IMAGES, recipe)(IMAGES).detach(),
        lambda: patch_similarity_density(vit, IMAGES).summary(),
        lambda: torch.stack([features.sum() for features in patch_features(vit, IMAGES)]).detach(),
        lambda: torch.tensor(len(trace(vit, example_image(vit)).calls)),
        lambda: vit(IMAGES).detach(),
    ]
    alone = [work() for work in works]
    before = holdings(vit)
    for one, other in zip(alone, at_once(*works), strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    assert holdings(vit) == before


def test_a_quantised_copy_takes_gradients_whoever_froze_the_model(vit):
    entered, done = threading.Event(), threading.Event()

    def hold():
        with frozen(vit):
            entered.set()
            done.wait(0.3)

    holder = threading.Thread(target=hold)
    holder.start()
    entered.wait()
    qmodel = quantize(vit, IMAGES, Recipe.paper(8, 8))
    done.set()
    holder.join()
    assert all(parameter.requires_grad for parameter in qmodel.parameters())


def test_runs_in_other_threads_leave_a_recording_alone(vit):
    with record_patch_features(vit) as recorder:
        vit(IMAGES)
        kept = [features.clone() for features in recorder.features]
        at_once(*[lambda: vit(IMAGES[:1])] * 3)
        assert len(recorder.features) == len(kept)
        assert all(torch.equal(one, other) for one, other in zip(kept, recorder.features, strict=True))


def test_what_was_borrowed_is_given_back_after_an_error(vit, monkeypatch):
    before = holdings(vit.train())
    with pytest.raises(PsaqError):
        trace(vit, torch.zeros(1, 3, 7, 7))
    monkeypatch.setattr("psaq.synthesis.loop.patch_similarity_entropy", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        synthesize(vit, CONFIGS[0], progress=False)
    assert holdings(vit) == before
    assert at_once(lambda: len(patch_features(vit, IMAGES))) == [2]  # nobody still holds it


def test_one_thread_may_borrow_twice_and_hooks_hear_their_own_thread(vit):
    heard = []
    hook = only_here(heard.append)
    with borrowed(vit), borrowed(vit):
        hook(1)
        at_once(lambda: hook(2))
    assert heard == [1]


def test_an_evaluation_leaves_the_model_in_the_mode_that_it_had(vit):
    vit.train()
    vit.blocks[0].eval()
    before = holdings(vit)
    labelled = [(image, 0) for image in IMAGES]
    evaluate(vit, labelled, vit)
    segmenter = load_model("micro_segmenter").train()
    evaluate(segmenter, torch.zeros(2, 3, 64, 64), segmenter)
    with pytest.raises(PsaqError):
        evaluate(vit, [(IMAGES[0] * torch.nan, 0)])
    assert holdings(vit) == before
    assert all(module.training for module in segmenter.modules())


def test_the_last_of_several_evaluations_gives_the_mode_back(vit):
    before = holdings(vit.train())
    with evaluating(vit):
        with evaluating(vit, vit.head):
            at_once(lambda: evaluate(vit, [(IMAGES[0], 0)]))
            assert not any(module.training for module in vit.modules())
        assert not any(module.training for module in vit.modules())
    assert holdings(vit) == before

"""Weights: the refit to a quantised input in closed form, and scales of least error."""

import pytest
import torch
from torch import nn

from psaq.quantization.model.conversion import converted
from psaq.quantization.model.points import points_in_scope, weight_points
from psaq.quantization.passes.im2col import vectors_of
from psaq.quantization.passes.statistics import InputStatistics
from psaq.quantization.quantizers.activations import is_end
from psaq.quantization.quantizers.affine import least_error_per_channel, symmetric_per_channel
from psaq.quantization.quantizers.weights import (
    bits_at,
    quantised_points,
    refitted_weight,
    rounded_weight,
    weight_quantizer,
)
from psaq.quantization.recipes import Recipe


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight (3, 6), an input of correlated channels, and the same rounded coarsely."""
    draw = torch.Generator().manual_seed(0)
    clean = torch.randn(400, 3, generator=draw) @ torch.randn(3, 6, generator=draw)
    return torch.randn(3, 6, generator=draw).double(), clean, clean.round()


def statistics_of(noisy: torch.Tensor, clean: torch.Tensor, centred: bool = False) -> InputStatistics:
    statistics = InputStatistics(centred)
    statistics.add(*(vectors_of(nn.Linear(6, 3), x) for x in (noisy, clean)))
    return statistics


def error(weight: torch.Tensor, other: torch.Tensor, noisy: torch.Tensor, clean: torch.Tensor) -> float:
    """E‖W x − W* x̂‖²."""
    return (clean.double() @ weight.T - noisy.double() @ other.T).square().sum(1).mean().item()


@pytest.mark.parametrize("strength", [0.1, 1.0, 100.0])
def test_the_refit_is_ridge_regression(data, strength):
    weight, clean, noisy = data
    found = refitted_weight(weight, statistics_of(noisy, clean), strength)
    ridge = noisy.double().square().mean() / strength
    # The same as ordinary least squares with one more row per input, √λ high, that asks for W itself.
    rows = torch.cat([noisy.double() / 20, ridge.sqrt() * torch.eye(6).double()])
    targets = torch.cat([clean.double() @ weight.T / 20, ridge.sqrt() * weight.T])
    torch.testing.assert_close(found, torch.linalg.lstsq(rows, targets).solution.T, rtol=1e-8, atol=1e-8)


def test_the_refit_lowers_the_error_at_the_output(data):
    weight, clean, noisy = data
    errors = [
        error(weight, refitted_weight(weight, statistics_of(noisy, clean), strength), noisy, clean)
        for strength in (0, 0.1, 1, 10)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.9 * errors[0]


def test_without_strength_or_noise_the_weight_stays(data):
    weight, clean, noisy = data
    assert torch.equal(refitted_weight(weight, statistics_of(noisy, clean), 0), weight)
    torch.testing.assert_close(refitted_weight(weight, statistics_of(clean, clean), 5.0), weight)
    constant = torch.full((9, 6), 0.7)
    torch.testing.assert_close(refitted_weight(weight, statistics_of(constant, constant, centred=True), 1.0), weight)


@pytest.mark.parametrize("bits", range(2, 9))
def test_scales_of_least_error_beat_those_of_the_largest(bits):
    weight = torch.randn(8, 200, generator=torch.Generator().manual_seed(1))
    importance = torch.rand(200, generator=torch.Generator().manual_seed(2))

    def errors(quantizer):
        return (quantizer(weight) - weight).square() @ importance

    searched = errors(least_error_per_channel(weight, bits, importance))
    assert (searched <= errors(symmetric_per_channel(weight, bits)) * 1.0001).all()
    assert searched.sum() <= errors(least_error_per_channel(weight, bits)).sum()
    assert bits > 5 or searched.sum() < 0.9 * errors(symmetric_per_channel(weight, bits)).sum()


def test_the_recipe_decides_scales_and_rounding(data):
    weight, clean, noisy = data
    moment = statistics_of(noisy, clean).second_moment
    by_max = weight_quantizer(weight, 3, Recipe(), None)
    by_error = weight_quantizer(weight, 3, Recipe(weight_scales="squared_error"), None)
    assert torch.equal(by_max.scale, symmetric_per_channel(weight, 3).scale)
    assert not torch.equal(by_error.scale, by_max.scale)
    nearest = rounded_weight(weight, by_max, moment, Recipe())
    assert torch.equal(nearest, by_max(weight.float()).double())
    assert not torch.equal(rounded_weight(weight, by_max, moment, Recipe(rounding="gptq")), nearest)


def test_the_first_and_the_last_layer_have_bits_of_their_own(vit, swin):
    recipe = Recipe(4, 6, ends=8, overrides=(("*.fc2", 5, 7),))
    (qvit, _), (qswin, _) = (converted(model, torch.zeros(1, 3, 32, 32)) for model in (vit, swin))
    assert bits_at(qvit, "patch_embed.proj.weight_quantizer", recipe) == (8, 8)
    assert bits_at(qvit, "head.input", recipe) == (8, 8)
    assert bits_at(qvit, "blocks.0.attn.qkv.weight_quantizer", recipe) == (4, 6)
    assert bits_at(qvit, "blocks.1.mlp.fc2.input", recipe) == (5, 7)
    assert bits_at(qvit, "embedded", recipe) == (4, 6)
    ends = {name for name, _ in qswin.named_modules() if is_end(qswin, name)}
    assert ends == {"patch_embed.proj", "head.fc"}


def test_points_left_in_float_have_no_bits(vit):
    recipe = Recipe(4, 6, overrides=(("head", None, None), ("blocks.1.attn*", None, None)))
    qmodel, _ = converted(vit, torch.zeros(1, 3, 32, 32))
    wanted = [*points_in_scope(qmodel, "matmul"), *weight_points(qmodel)]
    bits = quantised_points(qmodel, wanted, recipe)
    left = {name for name in wanted if name.startswith(("head.", "blocks.1.attn."))}
    assert len(left) == 2 + 4 + 2 * 2
    assert bits == {name: 4 if name.endswith("weight_quantizer") else 6 for name in wanted if name not in left}

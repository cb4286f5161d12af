"""What a model computes when deployed, by fake quantisation: in every type the same bits as the integers."""

from typing import Any

import pytest
import torch
from torch import nn

from psaq import PsaqError, Recipe, SceneDataset, deploy, load_model, quantize, simulate
from psaq.quantization.deployment.integer import IntegerLayerNorm, IntegerLinear

HALF = [torch.bfloat16, torch.float16]


def images(count: int = 6, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["vit", "swin"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("weights", [8, 4])
@pytest.mark.parametrize("scope", ["linear", "matmul", "all"])
@torch.no_grad()
def test_integers_compute_the_bits_of_the_simulation(
    model: nn.Module, weights: int, scope: Any, dtype: torch.dtype
) -> None:
    qmodel, x = quantize(model, images(), Recipe.paper(weights, scope=scope)), images(5, seed=2)
    simulated = simulate(qmodel, dtype)(x)
    assert simulated.dtype == dtype
    assert torch.equal(deploy(qmodel, dtype, "exact")(x), simulated)


@pytest.mark.parametrize("dtype", HALF)
@torch.no_grad()
def test_so_they_do_where_some_layers_stay_simulated(model: nn.Module, dtype: torch.dtype) -> None:
    qmodel, x = quantize(model, images(), Recipe.accurate(4, 8)), images(5, seed=2)
    assert torch.equal(deploy(qmodel, dtype, "exact")(x), simulate(qmodel, dtype)(x))


@pytest.mark.parametrize("name", ["micro_vit", "micro_swin"])
@pytest.mark.parametrize("weights", [8, 4])
@pytest.mark.parametrize("scope", ["linear", "all"])
@torch.no_grad()
def test_bundled_models_agree_on_scenes(name: str, weights: int, scope: Any) -> None:
    model = load_model(name)
    scenes = SceneDataset(32, 7, model)
    x = torch.stack([scenes[index][0] for index in range(len(scenes))])
    qmodel = quantize(model, x[:16], Recipe.paper(weights, scope=scope))
    assert torch.equal(deploy(qmodel, torch.bfloat16, "exact")(x), simulate(qmodel, torch.bfloat16)(x))


@torch.no_grad()
def test_in_float32_it_is_the_quantised_model(model: nn.Module) -> None:
    qmodel = quantize(model, images(), Recipe.paper(4, scope="all"))
    assert torch.equal(simulate(qmodel, torch.float32)(images(seed=2)), qmodel(images(seed=2)))


@torch.no_grad()
def test_no_integer_layer_takes_part_and_the_model_is_left_untouched(model: nn.Module) -> None:
    qmodel = quantize(model, images(), Recipe.paper(scope="all"))
    before = qmodel(images())
    modules = list(simulate(qmodel, torch.bfloat16).modules())
    assert not any(isinstance(module, IntegerLinear | IntegerLayerNorm) for module in modules)
    assert torch.equal(qmodel(images()), before)


def test_what_cannot_be_deployed_is_refused(vit: nn.Module) -> None:
    with pytest.raises(PsaqError, match="is not quantised"):
        simulate(vit, torch.bfloat16)

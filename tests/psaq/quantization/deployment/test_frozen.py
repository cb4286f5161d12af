"""Models captured on a CPU: compiled for one shape, with their integers as constants."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from repeats import also
from torch import Tensor, nn

from psaq import IntegerModel, PsaqError, Recipe, capture, deploy, quantize
from psaq.quantization.deployment import frozen as frozen_module
from psaq.quantization.deployment.integer import IntegerLinear
from psaq_kernels.processor import largest_exact_weight

products_of_bytes = pytest.mark.skipif(largest_exact_weight() == 0, reason="oneDNN has no product of bytes here")


def images(count: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def deployed(model: nn.Module, recipe: Recipe, dtype: torch.dtype) -> IntegerModel:
    return deploy(quantize(model, images(), recipe), dtype)


def close(found: Tensor, expected: Tensor) -> None:
    """Apart from levels that differ by one, since sums are rounded elsewhere; each moves an answer by some of it."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05 * float(expected.abs().amax()))


@products_of_bytes
@pytest.mark.parametrize(
    "case",
    [
        (Recipe(7, 8, "linear"), torch.bfloat16, False),
        *also((Recipe(4, 8, "linear"), torch.float32, True), (Recipe(7, 4, "matmul"), torch.float32, True)),
    ],
    ids=["W7A8", "W4A8", "W7A4"],
)
@torch.no_grad()
def test_a_frozen_model_answers_as_the_deployed_one(
    vit: nn.Module,
    case: tuple[Recipe, torch.dtype, bool],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe, dtype, tuned = case
    monkeypatch.setattr(frozen_module, "_TUNED", tuned)
    model, x = deployed(vit, recipe, dtype), images(2, seed=2)
    expected = model(x)
    frozen = capture(model, images(2))
    said = capsys.readouterr()
    assert "autotune" not in (said.out + said.err).lower()
    answer = frozen(x)
    close(answer, expected)
    assert torch.equal(model(x), expected), "the model itself stays as it was"
    with torch.inference_mode(), torch.autocast("cpu"):
        assert torch.equal(frozen(x.to(memory_format=torch.channels_last)), answer)
    for layer in model.modules():
        if isinstance(layer, IntegerLinear):
            layer.values.zero_()
    assert torch.equal(frozen(x), answer), "its integers are constants"


@torch.no_grad()
def test_a_second_frozen_model_is_compiled_too(vit: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler gives up on a method that it has compiled so many times, and says nothing."""
    monkeypatch.setattr(frozen_module, "_TUNED", False)
    model = deployed(vit, Recipe(7, 8, "linear"), torch.float32)
    with torch._dynamo.config.patch(recompile_limit=1), torch.autocast("cpu"):
        captured = [capture(model, images(count)) for count in (2, 3)]
    for frozen, count in zip(captured, (2, 3), strict=True):
        with torch.profiler.profile() as profile:
            frozen(images(count))
        assert not any("layer_norm" in event.name for event in profile.events()), "norms are fused"
    close(captured[0](images(2)), model(images(2)))
    batches = [images(2, seed) for seed in range(2, 6)]
    alone = [captured[0](x) for x in batches]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(captured[0], batches * 5))
    assert all(torch.equal(found, expected) for found, expected in zip(together, alone * 5, strict=True))


def test_a_model_of_several_graphs_is_refused(vit: nn.Module) -> None:
    model = deployed(vit, Recipe(7, 8, "linear"), torch.float32)
    model.model.register_forward_pre_hook(lambda *_: torch._dynamo.graph_break())
    with pytest.raises(PsaqError, match="a model that it takes whole"):
        capture(model, images())


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("way", ["products", "floats"])
@pytest.mark.parametrize("weights", [8, *also(4)])
@torch.no_grad()
def test_freezing_changes_no_bit(vit: nn.Module, weights: int, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "floats":
        monkeypatch.setattr("psaq.quantization.deployment.deploy.runs_in_integers", lambda _: False)
    model = deployed(vit, Recipe(weights, 8, "linear"), torch.float32)
    assert torch.equal(capture(model, images())(images(seed=2)), model(images(seed=2)))


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("other", [images(3), images().to(torch.bfloat16)], ids=["more", "bfloat16"])
def test_other_images_than_the_captured_are_refused(vit: nn.Module, other: Tensor) -> None:
    frozen = capture(deployed(vit, Recipe(8, 8, "linear"), torch.float32), images())
    with pytest.raises(PsaqError, match="capture it again"):
        frozen(other)


def test_a_float_model_on_the_cpu_is_refused(vit: nn.Module) -> None:
    with pytest.raises(PsaqError, match="capture takes what"):
        capture(vit, images())


@pytest.mark.usefixtures("uncompiled")
def test_a_model_of_lists_is_refused(vit: nn.Module) -> None:
    model = deployed(vit, Recipe(8, 8, "linear"), torch.float32)
    model.psaq_takes = "list"
    with pytest.raises(PsaqError, match="takes a list of images"):
        capture(model, images())


def test_a_missing_compiler_is_named(vit: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(images: Tensor) -> Tensor:
        raise torch._dynamo.exc.TorchDynamoException("no C++ compiler was found")

    monkeypatch.setattr(torch, "compile", lambda model, **_: refuse)
    with pytest.raises(PsaqError, match=r"no C\+\+ compiler was found.*needs a C\+\+ compiler"):
        capture(deployed(vit, Recipe(8, 8, "linear"), torch.float32), images())

"""A real DeiT-Tiny in integers, on real images."""

from functools import cache
from pathlib import Path

import pytest
import torch
from repeats import also
from torch import Tensor, nn

import psaq
from psaq.images.pictures import load_pictures, picture_files
from psaq.quantization.deployment.onnx_graph import export_onnx
from psaq.tasks.classification import Report, collect_logits, compare, logit_sqnr

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"
WEIGHTS = SHARED / "weights" / "deit_tiny_patch16_224.safetensors"
MOST_BYTES = 3_600_000

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not WEIGHTS.exists(), reason=f"no real weights and images in {SHARED}"),
]


@cache
def deit_tiny() -> nn.Module:
    return psaq.load_model("deit_tiny", WEIGHTS)


@cache
def quantized(weights: int, scope: str) -> nn.Module:
    images = load_pictures(picture_files([SHARED / "imagenet" / "train"])[:32], deit_tiny())
    return psaq.quantize(deit_tiny(), images, psaq.Recipe.paper(weights=weights, scope=scope))  # type: ignore[arg-type]


@cache
def validation() -> list[tuple[Tensor, int]]:
    """Every tenth of the 600 images, read once."""
    everything = psaq.imagenet(SHARED / "imagenet" / "val", model=deit_tiny(), crop_pct=0.987)
    return [everything[index] for index in range(0, len(everything), 10)]


def logits(model: nn.Module) -> tuple[Tensor, Tensor]:
    return collect_logits(model, validation(), batch_size=20)  # type: ignore[arg-type]


@cache
def simulated_logits(weights: int, scope: str) -> Tensor:
    return logits(quantized(weights, scope))[0]


def agreement(model: nn.Module, reference: Tensor) -> Report:
    found, labels = logits(model)
    return compare(found, labels, reference)


@pytest.mark.parametrize("weights", [*also(8), 4])
@pytest.mark.parametrize("scope", [*also("linear"), "all"])
def test_integers_agree_with_the_simulation(weights: int, scope: str) -> None:
    report = agreement(psaq.deploy(quantized(weights, scope), torch.float32, "exact"), simulated_logits(weights, scope))
    assert report.agreement is not None
    assert report.agreement >= 99
    assert report.logit_sqnr is not None
    assert report.logit_sqnr >= 45


@pytest.mark.parametrize("weights", [*also(8), 4])
@pytest.mark.parametrize("scope", ["linear", *also("all")])
def test_integers_in_half_precision_agree_with_the_simulation_in_it(weights: int, scope: str) -> None:
    qmodel = quantized(weights, scope)
    simulated, _ = logits(psaq.simulate(qmodel, torch.bfloat16))
    report = agreement(psaq.deploy(qmodel, torch.bfloat16, "exact"), simulated)
    assert report.agreement is not None
    assert report.agreement >= 99
    assert report.logit_sqnr is not None
    assert report.logit_sqnr >= 35


@pytest.mark.parametrize("weights", [*also(8), 4])
def test_what_rounds_elsewhere_is_as_accurate(weights: int) -> None:
    """The default on a CPU: oneDNN's products, or float ones."""
    simulated = simulated_logits(weights, "linear")
    found, labels = logits(psaq.deploy(quantized(weights, "linear")))
    report = compare(found, labels, simulated)
    assert report.agreement is not None
    assert report.agreement >= 95
    assert report.top1 >= compare(simulated, labels).top1 - 2


def test_half_precision_keeps_the_accuracy() -> None:
    full, labels = logits(deit_tiny())
    report = agreement(psaq.deploy(quantized(8, "linear"), torch.bfloat16), full)
    reference = compare(simulated_logits(8, "linear"), labels, full)
    assert report.top1 >= reference.top1 - 2
    assert report.logit_sqnr is not None
    assert reference.logit_sqnr is not None
    assert report.logit_sqnr >= reference.logit_sqnr - 1


@torch.no_grad()
def test_why_half_precision_is_not_held_to_the_simulation_in_float32() -> None:
    """A change of one in a million moves a few activations to the next level; twelve quantised blocks amplify that
    to the size of quantisation noise, while the full-precision model hardly notices."""
    generator = torch.Generator().manual_seed(0)
    x = torch.stack([image for image, _ in validation()[:8]])

    def moved(model: nn.Module) -> float:
        before = model(x)
        nudge = model.patch_embed.register_forward_hook(
            lambda _, __, out: out * (1 + 1e-6 * torch.randn(out.shape, generator=generator))
        )
        after = model(x)
        nudge.remove()
        return logit_sqnr(after, before)

    assert moved(deit_tiny()) > 90
    assert moved(quantized(8, "linear")) < 35


def test_a_w4a8_file_is_small_and_deploys_to_the_same_bits(tmp_path: Path) -> None:
    file = tmp_path / "deit_tiny-w4a8.safetensors"
    psaq.save(quantized(4, "all"), file)
    assert file.stat().st_size <= MOST_BYTES
    x = torch.stack([image for image, _ in validation()[:4]])
    loaded, kept = (psaq.deploy(model, torch.float32) for model in (psaq.load(file), quantized(4, "all")))
    assert torch.equal(loaded(x), kept(x))


@torch.no_grad()
def test_onnxruntime_is_as_accurate(tmp_path: Path) -> None:
    """Its sums round elsewhere, and see above what that makes of a quantised model."""
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    export_onnx(quantized(8, "linear"), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    x = torch.stack([image for image, _ in validation()])
    labels = torch.tensor([label for _, label in validation()])
    found = torch.cat([torch.from_numpy(session.run(None, {"images": part.numpy()})[0]) for part in x.split(20)])
    report, simulated = compare(found, labels, simulated_logits(8, "linear")), simulated_logits(8, "linear")
    assert report.agreement is not None
    assert report.agreement >= 95
    assert report.top1 >= compare(simulated, labels).top1 - 2

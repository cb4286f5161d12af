"""``psaq export``: a quantised model for other runtimes, checked in one of them."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psaq.commands.quantize import MODEL_FILE
from psaq.errors import PsaqError
from psaq.evaluation import logit_sqnr
from psaq.images.batches import gaussian_images
from psaq.images.pictures import load_pictures, picture_files
from psaq.models.answers import Answering
from psaq.models.zoo import fresh_model
from psaq.progress import progress_bar
from psaq.quantization.checkpoint import load
from psaq.quantization.deployment.onnx_graph import export_float_onnx, export_onnx
from psaq.runs import device_name

Images = Float[Tensor, "images channels height width"]


@dataclass(frozen=True)
class Verdict:
    """How onnxruntime's model compares with the fake-quantised one, and with float32 in onnxruntime."""

    images: int
    agreement: float
    """Images with the same most likely class, in percent."""
    logit_sqnr: float
    """In dB."""
    milliseconds: float
    """For one batch."""
    float_milliseconds: float
    """For the same batch with every quantisation point off."""


@dataclass(frozen=True)
class Export:
    """Write a quantised model as ONNX with QuantizeLinear and DequantizeLinear (opset 21), and run it in onnxruntime
    beside the fake-quantised model and beside float32."""

    quantized: Path
    """A run of ``psaq quantize``, or its file."""
    onnx: Path
    """The ONNX file to write."""
    images: Path | None = None
    """Pictures to check it on; by default noise."""
    num_images: int = 32
    """How many of them, in sorted path order."""
    crop_pct: float | None = None
    """Part of the resized picture's side that the centre crop keeps; by default the model's own."""
    model: str | None = None
    """What was quantised, as `psaq quantize` names it; only where the file holds no way to build it."""
    part: str | None = None
    """A module to export in place of the whole model: the backbone of a detector."""
    batch_size: int = 8
    """Images per timed batch."""
    repeats: int = 5
    """Timed batches, of which the median counts."""

    def __post_init__(self) -> None:
        if min(self.num_images, self.batch_size, self.repeats) < 1:
            raise PsaqError("--num-images, --batch-size and --repeats must be at least 1")

    def run(self) -> None:
        file = self.quantized / MODEL_FILE if self.quantized.is_dir() else self.quantized
        qmodel = load(file, None if self.model is None else fresh_model(self.model))
        images = self._pictures(qmodel)
        export_onnx(qmodel, self.onnx, self.part)
        print(f"{self.onnx}: {self.onnx.stat().st_size / 1e6:.2f} MB")
        verdict = check_onnx(self.onnx, qmodel, images, self.batch_size, self.repeats, self.part)
        print(_in_words(verdict, min(self.batch_size, verdict.images)))

    def _pictures(self, qmodel: nn.Module) -> Images:
        if self.images is None:
            return gaussian_images(qmodel, self.num_images)
        return load_pictures(picture_files([self.images])[: self.num_images], qmodel, crop_pct=self.crop_pct)


def check_onnx(
    path: Path, qmodel: nn.Module, images: Images, batch_size: int, repeats: int, part: str | None = None
) -> Verdict:
    """Run an exported model in onnxruntime on the CPU.

    Raises:
        PsaqError: onnxruntime is missing.
    """
    quantized = onnx_session(path)
    with TemporaryDirectory() as folder:
        export_float_onnx(qmodel, Path(folder) / "float.onnx", part)
        full = onnx_session(Path(folder) / "float.onnx")
    batches = images.split(batch_size)
    found = torch.cat([quantized(batch) for batch in progress_bar(batches, description="onnxruntime", unit="batch")])
    expected = _fake_quantized(qmodel if part is None else qmodel.get_submodule(part), batches)
    agreement = 100 * (found.argmax(1) == expected.argmax(1)).double().mean().item()
    taken = [_milliseconds(run, batches[0], repeats) for run in (quantized, full)]
    return Verdict(len(images), agreement, logit_sqnr(found, expected), *taken)


@torch.no_grad()
def _fake_quantized(qmodel: nn.Module, batches: tuple[Images, ...]) -> Tensor:
    progress = progress_bar(batches, description="Fake-quantised", unit="batch")
    answers = Answering(qmodel.cpu())
    return torch.cat([answers(batch) for batch in progress])


def onnx_session(path: Path) -> Callable[[Images], Tensor]:
    """Images to logits, or to all numbers of an output that has none, by an exported model in onnxruntime, on the CPU.
    Raises PsaqError where that is missing."""
    try:
        import onnxruntime
    except ImportError as error:
        raise PsaqError('onnxruntime is not installed; run pip install "psaq[onnx]"') from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: Images) -> Tensor:
        outputs = session.run(None, {"images": images.numpy()})
        return torch.cat([torch.from_numpy(output).flatten(1) for output in outputs], 1)

    return run


def _milliseconds(run: Callable[[Images], Tensor], batch: Images, repeats: int) -> float:
    run(batch)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run(batch)
        seconds.append(time.perf_counter() - started)
    return 1e3 * statistics.median(seconds)


def _in_words(verdict: Verdict, batch: int) -> str:
    speed = verdict.float_milliseconds / verdict.milliseconds
    return (
        f"onnxruntime beside the fake-quantised model: same top-1 on {verdict.agreement:.1f} % of {verdict.images} "
        f"images, logit SQNR {verdict.logit_sqnr:.1f} dB\n"
        f"{batch} images on {device_name('cpu')}: {verdict.milliseconds:.1f} ms, float32 "
        f"{verdict.float_milliseconds:.1f} ms, so {speed:.2f} times as fast"
    )

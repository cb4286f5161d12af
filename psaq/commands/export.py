"""``psaq export``: a quantised model for other runtimes, checked in one of them."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psaq.commands.quantize import MODEL_FILE
from psaq.commands.runtimes import ONNXRUNTIME, Products, Session, installed, products, session
from psaq.errors import PsaqError
from psaq.images.batches import gaussian_images
from psaq.images.pictures import load_pictures, picture_files
from psaq.models.answers import Answering
from psaq.models.zoo import fresh_model
from psaq.progress import progress_bar
from psaq.quantization.checkpoint import load
from psaq.quantization.deployment.onnx_graph import Runtime, export_float_onnx, export_onnx
from psaq.quantization.model.points import layer_of, live_points
from psaq.quantization.quantizers.affine import AffineQuantizer
from psaq.runs import device_name
from psaq.tasks.classification import logit_sqnr
from psaq_kernels.processor import BYTE, dot_products, largest_exact_weight

Images = Float[Tensor, "images channels height width"]


@dataclass(frozen=True)
class Verdict:
    """How a runtime's model compares with the fake-quantised one, and with float32 in that runtime."""

    runtime: str
    images: int
    agreement: float | None
    """Images with the same most likely class, in percent; None of a model without classes."""
    logit_sqnr: float
    """In dB."""
    milliseconds: float
    """For one batch."""
    float_milliseconds: float
    """For the same batch with every quantisation point off."""
    products: Products


@dataclass(frozen=True)
class Export:
    """Write a quantised model as ONNX with QuantizeLinear and DequantizeLinear (opset 21), and run it in the runtimes
    that are installed, onnxruntime and OpenVINO, beside the fake-quantised model and beside float32."""

    quantized: Path
    """A run of ``psaq quantize``, or its file."""
    onnx: Path
    """The ONNX file to write."""
    runtime: Runtime | None = None
    """Whom the file is for. By default its sums are right on every processor and in every runtime; one for onnxruntime
    or openvino is faster where the processor has VNNI, AMX or their like, and wrong where it has not."""
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
        export_onnx(qmodel, self.onnx, self.part, self.runtime)
        print(f"{self.onnx}: {self.onnx.stat().st_size / 1e6:.2f} MB")
        for remark in _remarks(qmodel, self.runtime):
            print(remark)
        for runtime in installed() or [ONNXRUNTIME]:
            sizes = (self.batch_size, self.repeats)
            verdict = check_onnx(self.onnx, qmodel, images, *sizes, self.part, runtime)
            print(_in_words(verdict, min(self.batch_size, verdict.images)))

    def _pictures(self, qmodel: nn.Module) -> Images:
        if self.images is None:
            return gaussian_images(qmodel, self.num_images)
        return load_pictures(picture_files([self.images])[: self.num_images], qmodel, crop_pct=self.crop_pct)


def check_onnx(
    path: Path,
    qmodel: nn.Module,
    images: Images,
    batch_size: int,
    repeats: int,
    part: str | None = None,
    runtime: Runtime = ONNXRUNTIME,
) -> Verdict:
    """Run an exported model in a runtime on the CPU.

    Raises:
        PsaqError: the runtime is missing.
    """
    quantized = session(path, runtime)
    with TemporaryDirectory() as folder:
        export_float_onnx(qmodel, Path(folder) / "float.onnx", part)
        full = session(Path(folder) / "float.onnx", runtime)
    batches = images.split(batch_size)
    found = torch.cat([quantized(batch) for batch in progress_bar(batches, description=runtime, unit="batch")])
    answers = Answering((qmodel if part is None else qmodel.get_submodule(part)).cpu())
    expected = _fake_quantized(answers, batches)
    same = (found.argmax(1) == expected.argmax(1)).double()
    agreement = 100 * same.mean().item() if answers.has_classes else None
    taken, float_taken = (_milliseconds(run, batches[0], repeats) for run in (quantized, full))
    ran = products(path, runtime, batches[0])
    return Verdict(runtime, len(images), agreement, logit_sqnr(found, expected), taken, float_taken, ran)


def _remarks(qmodel: nn.Module, runtime: Runtime | None) -> Iterator[str]:
    """What to know of a file before it is taken anywhere."""
    if runtime in ("onnxruntime", "openvino") and largest_exact_weight() < BYTE:
        yield (f"sums overflow in {runtime} here: the file is for processors with 8-bit dot products")
    uneven = {layer_of(name) for name, point in live_points(qmodel).items() if not isinstance(point, AffineQuantizer)}
    if uneven:
        yield f"in float, for uneven steps of their levels: products of {len(uneven)} modules; none with --scope linear"


@torch.no_grad()
def _fake_quantized(answers: Answering, batches: tuple[Images, ...]) -> Tensor:
    progress = progress_bar(batches, description="Fake-quantised", unit="batch")
    return torch.cat([answers(batch) for batch in progress])


def onnx_session(path: Path) -> Session:
    """An exported model in onnxruntime, on the CPU. Raises PsaqError where that is missing."""
    return session(path)


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
    features = ", ".join(dot_products()) or "no 8-bit dot products"
    images = f"{verdict.images} images"
    same = (
        f"SQNR on {images}"
        if verdict.agreement is None
        else (f"same top-1 on {verdict.agreement:.1f} % of {images}, logit SQNR")
    )
    return (
        f"{verdict.runtime} beside the fake-quantised model: {same} {verdict.logit_sqnr:.1f} dB\n"
        f"{batch} images on {device_name('cpu')} ({features}): {verdict.milliseconds:.1f} ms, float32 "
        f"{verdict.float_milliseconds:.1f} ms, so {speed:.2f} times as fast; {verdict.products.integer} of "
        f"{verdict.products.total} products in integers"
    )

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

from psaq.choices import Runtime
from psaq.commands.export import Export
from psaq.commands.quantize import MODEL_FILE
from psaq.commands.runtimes import ONNXRUNTIME, Products, Session, installed, products, session
from psaq.images.batches import gaussian_images
from psaq.images.pictures import load_pictures, picture_files
from psaq.models.answers import Answering
from psaq.models.zoo import fresh_model
from psaq.progress import progress_bar
from psaq.quantization.checkpoint import load
from psaq.quantization.deployment.onnx_graph import export_float_onnx, export_onnx
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


def run(options: Export) -> None:
    file = options.quantized / MODEL_FILE if options.quantized.is_dir() else options.quantized
    qmodel = load(file, None if options.model is None else fresh_model(options.model))
    images = _pictures(options, qmodel)
    export_onnx(qmodel, options.onnx, options.part, options.runtime)
    print(f"{options.onnx}: {options.onnx.stat().st_size / 1e6:.2f} MB")
    for remark in _remarks(qmodel, options.runtime):
        print(remark)
    for runtime in installed() or [ONNXRUNTIME]:
        sizes = (options.batch_size, options.repeats)
        verdict = check_onnx(options.onnx, qmodel, images, *sizes, options.part, runtime)
        print(_in_words(verdict, min(options.batch_size, verdict.images)))


def _pictures(options: Export, qmodel: nn.Module) -> Images:
    if options.images is None:
        return gaussian_images(qmodel, options.num_images)
    return load_pictures(picture_files([options.images])[: options.num_images], qmodel, crop_pct=options.crop_pct)


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

"""How an exported model does in a runtime, beside the fake-quantised one and beside float32."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from psaq.choices import Runtime
from psaq.models.answers import Answering
from psaq.models.copying import copied
from psaq.progress import progress_bar
from psaq.quantization.deployment.onnx_graph import export_float_onnx
from psaq.quantization.deployment.onnx_part import fits, part_of, taken_by
from psaq.quantization.deployment.runtimes import ONNXRUNTIME, Images, Products, Session, products, session, settle
from psaq.tasks.classification import logit_sqnr


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
    float_milliseconds: float | None
    """For the same batch with every quantisation point off; None of a model too large for an ONNX file in float32."""
    products: Products


def check_onnx(
    path: Path,
    qmodel: nn.Module,
    images: Images,
    batch_size: int,
    repeats: int,
    part: str | None = None,
    runtime: Runtime = ONNXRUNTIME,
    *,
    progress: bool = False,
) -> Verdict:
    """Run an exported model in a runtime on the CPU.

    Raises:
        PsaqError: the runtime is missing.
    """
    quantized = session(path, runtime)
    full = _in_float32(qmodel, part, runtime)
    model = copied(qmodel).cpu()
    answers = Answering(part_of(model, part))
    batches = _taken(answers.model, model, images.split(batch_size))
    found = _answered(quantized, batches, runtime, progress)
    expected = _answered(answers, batches, "Fake-quantised", progress)
    same = (found.argmax(1) == expected.argmax(1)).double()
    agreement = 100 * same.mean().item() if answers.has_classes else None
    taken = _milliseconds(quantized, batches[0], repeats)
    float_taken = None if full is None else _milliseconds(full, batches[0], repeats)
    ran = products(path, runtime, batches[0])
    return Verdict(runtime, len(images), agreement, logit_sqnr(found, expected), taken, float_taken, ran)


@torch.no_grad()
def _taken(part: nn.Module, model: nn.Module, batches: Sequence[Images]) -> list[Tensor]:
    """What the part is called with, of each batch of the model's images."""
    return [taken_by(part, model, batch) for batch in batches]


def _in_float32(qmodel: nn.Module, part: str | None, runtime: Runtime) -> Session | None:
    if not fits(sum(4 * parameter.numel() for parameter in part_of(qmodel, part).parameters())):
        return None
    with TemporaryDirectory() as folder:
        export_float_onnx(qmodel, Path(folder) / "float.onnx", part)
        return session(Path(folder) / "float.onnx", runtime)


@torch.no_grad()
def _answered(
    answers: Callable[[Images], Tensor], batches: Sequence[Images], description: str, progress: bool
) -> Tensor:
    bar = progress_bar(batches, description=description, unit="batch", enabled=progress)
    return torch.cat([answers(batch) for batch in bar])


def _milliseconds(run: Callable[[Images], Tensor], batch: Images, repeats: int) -> float:
    settle(lambda: run(batch))
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run(batch)
        seconds.append(time.perf_counter() - started)
    return 1e3 * statistics.median(seconds)

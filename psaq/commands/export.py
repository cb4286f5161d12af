"""``psaq export``: a quantised model for other runtimes, checked in one of them."""

from dataclasses import dataclass
from pathlib import Path

from psaq.choices import Runtime
from psaq.errors import PsaqError


@dataclass(frozen=True)
class Export:
    """Write a quantised model as ONNX with QuantizeLinear and DequantizeLinear (opset 21), and run it in the runtimes
    that it is for, where they are installed, beside the fake-quantised model and beside float32."""

    quantized: Path
    """A run of ``psaq quantize``, or its file."""
    onnx: Path
    """The ONNX file to write."""
    runtime: Runtime | None = None
    """Whom the file is for. By default its sums are right on every processor and in every runtime; one for onnxruntime
    or openvino is faster where the processor has VNNI, AMX or their like; where it has not, sums of 8-bit weights are
    wrong."""
    images: Path | None = None
    """What to check it on: a run of ``psaq synthesize``, or a folder of real pictures; by default noise."""
    num_images: int = 32
    """How many of them; of a folder, the first in sorted path order."""
    crop_pct: float | None = None
    """For real pictures: part of the resized side that the centre crop keeps; by default the model's own."""
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
        from psaq.commands.work.export import run

        run(self)

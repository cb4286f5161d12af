"""``psaq benchmark inference``: the integer model beside float32, bfloat16, compiled ones and other runtimes."""

from dataclasses import dataclass, field
from pathlib import Path

from psaq.commands.options import ModelOptions
from psaq.errors import PsaqError


@dataclass(frozen=True)
class BenchmarkInference:
    """Latency and throughput of the model in integers beside float32, bfloat16 and compiled ones, on a CPU also in
    onnxruntime and OpenVINO; the whole model and layer by layer. Quantised in scope "linear", so that attention runs
    fused."""

    model: ModelOptions = field(default_factory=ModelOptions)
    precision: str = "W8A8"
    """Bits of weights and activations."""
    images: tuple[int, ...] = (1, 8, 32, 128)
    """Batch sizes."""
    compiled: bool | None = None
    """Time torch.compile's versions, too, by default on a GPU only; where asked for, also psaq.capture's, which takes
    minutes for every batch size."""
    runtimes: bool | None = None
    """Time the runtimes that are installed, too; by default on a CPU."""
    repeats: int = 10
    """Timed rounds; every round times each variant once, and medians are reported."""
    random_weights: bool = False
    """Leave the weights as they are initialised: no time depends on them, and nothing is downloaded."""
    out: Path | None = None
    """Also write configuration and results into this run folder."""

    def __post_init__(self) -> None:
        if self.repeats < 1 or not self.images or min(self.images) < 1:
            raise PsaqError("--repeats and every number of --images must be at least 1")

    def run(self) -> None:
        from psaq.commands.work.benchmark_inference import run

        run(self)

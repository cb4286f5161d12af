"""``psaq benchmark synthesis``: a synthesis step beside the model's own forward and backward, side by side."""

from dataclasses import dataclass, field
from pathlib import Path

from psaq.commands.options import ModelOptions
from psaq.errors import PsaqError


@dataclass(frozen=True)
class BenchmarkSynthesis:
    """Time and peak memory of a synthesis step, in proportion to the model's own forward and backward."""

    model: ModelOptions = field(default_factory=ModelOptions)
    images: tuple[int, ...] = (8, 32)
    """Batch sizes."""
    repeats: int = 5
    """Timed rounds; every round times each variant once, and medians are reported."""
    eager: bool = True
    """Time the paper's loss as usually written, too: about 40 times as slow, gigabytes of memory."""
    memory: bool = True
    """Measure peak memory, too, each variant in a process of its own (on a CPU: Linux only)."""
    out: Path | None = None
    """A CSV file for the table."""

    def __post_init__(self) -> None:
        if self.repeats < 1 or not self.images or min(self.images) < 1:
            raise PsaqError("--repeats and every number of --images must be at least 1")

    def run(self) -> None:
        from psaq.commands.work.benchmark_synthesis import run

        run(self)

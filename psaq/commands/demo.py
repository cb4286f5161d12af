"""``psaq demo``: the main job on the bundled models, from nothing to a table, in minutes on a laptop."""

from dataclasses import dataclass, field
from pathlib import Path

from psaq.commands.options import Device
from psaq.synthesis import SynthesisConfig


@dataclass(frozen=True)
class Demo:
    """Quantise the bundled models with no data and compare with calibration on real images and on noise."""

    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    scenes: int = 600
    """Held-out scenes to evaluate on."""
    precisions: tuple[str, ...] = ("W8A8", "W4A8", "W4A4")
    """Bits of weights and activations."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    out: Path = Path("runs/demo")
    """The run's folder."""

    def run(self) -> None:
        from psaq.commands.work.demo import run

        run(self)

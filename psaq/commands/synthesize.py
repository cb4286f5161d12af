"""``psaq synthesize``: calibration images from a model alone, in a run folder that can be resumed."""

from dataclasses import dataclass, field
from pathlib import Path

from psaq.commands.options import ModelOptions
from psaq.synthesis import SynthesisConfig
from psaq.synthesis.config import PRESETS, Preset


@dataclass(frozen=True)
class Synthesize:
    """Make calibration images from a trained vision transformer alone. Run again, it goes on where it stopped."""

    model: ModelOptions = field(default_factory=ModelOptions)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    preset: Preset = "default"
    """Where the other options start from: paper is the authors' schedule, faithful also their formulas, pictures is for
    images to look at."""
    out: Path | None = None
    """The run's folder; by default runs/synthesize-MODEL-seedSEED."""

    @classmethod
    def presets(cls) -> dict[str, "Synthesize"]:
        """The options that each preset starts from."""
        return {name: cls(synthesis=config, preset=name) for name, config in PRESETS.items()}

    scales_out = True

    def run(self) -> None:
        from psaq.commands.work.synthesize import run

        run(self)

"""``psaq evolve``: a quantised model and images that teach each other, in a run folder that can be resumed."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from psaq.commands.calibration import Quantising
from psaq.evolution import EvolutionConfig

Preset = Literal["default", "paper"]


@dataclass(frozen=True)
class Evolve(Quantising):
    """Quantise, and let images and quantised model teach each other (PSAQ-ViT V2). Run again, it goes on where it
    stopped; after its end, too, where more rounds or minutes are asked for."""

    precision: str = "W4A4"
    """Bits of weights and activations, 2 to 8 each."""
    evolution: EvolutionConfig = field(default_factory=EvolutionConfig)
    images: Path | None = None
    """Learn from these alone: a run of ``psaq synthesize``, or a folder of real pictures; where they are more than
    --pool, from as many, spread evenly over them. By default they are synthesised."""
    preset: Preset = "default"
    """Where the other options start from: paper is V2 as it is described."""

    @classmethod
    def presets(cls) -> dict[str, "Evolve"]:
        """The options that each preset starts from."""
        return {"paper": cls(evolution=EvolutionConfig.paper(), preset="paper")}

    def run(self) -> None:
        from psaq.commands.work.evolve import run

        run(self)

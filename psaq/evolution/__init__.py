"""PSAQ-ViT V2 (Li et al. 2023): images and the quantised model teach each other, in turns, under the full-precision
model."""

from typing import TYPE_CHECKING

from psaq.evolution.config import EvolutionConfig
from psaq.lazy import names_on_demand

if TYPE_CHECKING:
    from psaq.evolution.loop import evolve
else:
    __getattr__, __dir__ = names_on_demand(__name__, {"psaq.evolution.loop": ("evolve",)})

__all__ = ["EvolutionConfig", "evolve"]

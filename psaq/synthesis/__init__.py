"""Images from a model alone: gradient descent on pixels until patch similarities are as diverse as a real image's."""

from typing import TYPE_CHECKING

from psaq.lazy import names_on_demand
from psaq.synthesis.config import SynthesisConfig

if TYPE_CHECKING:
    from psaq.synthesis.loop import synthesize
else:
    __getattr__, __dir__ = names_on_demand(__name__, {"psaq.synthesis.loop": ("synthesize",)})

__all__ = ["SynthesisConfig", "synthesize"]

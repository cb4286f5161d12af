"""Images from a model alone: gradient descent on pixels until patch similarities are as diverse as a real image's."""

from psaq.synthesis.config import SynthesisConfig
from psaq.synthesis.loop import synthesize

__all__ = ["SynthesisConfig", "synthesize"]

"""What a configuration costs by a model of the machine: good for leaving out what cannot win, not to foretell times.

A launch takes its time whatever it does; blocks run in turns on the multiprocessors; within one, whatever is slowest
of products, loads and scalar work counts.
"""

import math
from dataclasses import dataclass

from psaq_kernels.devices import DeviceLimits

CLOCK = 1.7e9  # per second
SCALAR_LANES = 128  # operations per clock
L2_BYTES = 64  # per clock
MEMORY_BYTES = 14  # per clock, a multiprocessor's share
BLOCK_CLOCKS = 1500  # to fill and to drain a block
LAUNCH_CLOCKS = 3500

# Products of int8 per clock and multiprocessor; TF32 takes four times as long.
INT8_PRODUCTS = {"sm_80": 2048, "sm_86": 1024, "sm_89": 1024, "sm_90": 4096, "sm_100": 8192, "gfx942": 2048}
USUAL_INT8_PRODUCTS = 1024


@dataclass(frozen=True)
class Model:
    """A device as the model sees it."""

    multiprocessors: int
    int8_products: int  # per clock and multiprocessor

    @staticmethod
    def of(limits: DeviceLimits) -> "Model":
        return Model(limits.multiprocessors, INT8_PRODUCTS.get(limits.capability, USUAL_INT8_PRODUCTS))

    @property
    def exact_products(self) -> int:
        """Of float32."""
        return SCALAR_LANES

    @property
    def threefold_products(self) -> float:
        """Of float32 by three of TF32."""
        return self.int8_products / 4 / 3

    def in_turns(self, blocks: int, clocks: float) -> float:
        """Seconds for a launch of blocks that take ``clocks`` each."""
        turns = math.ceil(blocks / self.multiprocessors)
        return (LAUNCH_CLOCKS + BLOCK_CLOCKS + turns * clocks) / CLOCK

    def stream(self, moved: float) -> float:
        """Seconds for a launch that only reads and writes."""
        return (LAUNCH_CLOCKS + moved / self.multiprocessors / MEMORY_BYTES) / CLOCK

"""What a GPU allows one block of threads, for the GPU at hand and for targets compiled ahead of time."""

from dataclasses import dataclass
from functools import cache

import torch

KIB = 1024


@dataclass(frozen=True)
class DeviceLimits:
    """The resources of one GPU that a launch must fit."""

    name: str  # what the driver calls it, or the target's own name
    capability: str  # "sm_90", "gfx942"
    shared_bytes: int  # per block
    max_threads: int = 1024  # per block
    warp_size: int = 32
    multiprocessors: int = 132

    @property
    def max_warps(self) -> int:
        return self.max_threads // self.warp_size

    @property
    def is_amd(self) -> bool:
        return self.capability.startswith("gfx")


TARGETS = {
    "sm_80": DeviceLimits("sm_80", "sm_80", 163 * KIB, multiprocessors=108),
    "sm_86": DeviceLimits("sm_86", "sm_86", 99 * KIB, multiprocessors=84),
    "sm_89": DeviceLimits("sm_89", "sm_89", 99 * KIB, multiprocessors=128),
    "sm_90": DeviceLimits("sm_90", "sm_90", 227 * KIB),
    "sm_100": DeviceLimits("sm_100", "sm_100", 227 * KIB, multiprocessors=148),
    "sm_120": DeviceLimits("sm_120", "sm_120", 99 * KIB, multiprocessors=170),
    "gfx942": DeviceLimits("gfx942", "gfx942", 64 * KIB, warp_size=64, multiprocessors=304),
}

INTERPRETER = DeviceLimits("interpreter", "interpreter", 64 * KIB)


def device_limits(device: torch.device) -> DeviceLimits:
    """The limits of ``device``; those of the most modest target where Triton's interpreter stands in for it."""
    if device.type != "cuda":
        return INTERPRETER
    return _limits(device.index if device.index is not None else torch.cuda.current_device())


@cache
def _limits(index: int) -> DeviceLimits:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        capability, shared = properties.gcnArchName.split(":")[0], properties.shared_memory_per_block
    else:
        capability = f"sm_{properties.major}{properties.minor}"
        shared = getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block)
    return DeviceLimits(
        properties.name,
        capability,
        shared,
        warp_size=properties.warp_size,
        multiprocessors=properties.multi_processor_count,
    )

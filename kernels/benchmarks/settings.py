"""What the stages measure on: real sizes on a GPU, toy sizes where they are rehearsed on a CPU."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import milliseconds  # type: ignore[import-not-found]

from psaq_kernels import tuning

LayerSizes = tuple[tuple[int, int, int], ...]  # windows, patches, channels of each block
Linears = dict[str, tuple[int, int, int]]  # layer -> rows of one image, inputs, outputs

DEIT_B: Linears = {
    "qkv": (197, 768, 2304),
    "proj": (197, 768, 768),
    "fc1": (197, 768, 3072),
    "fc2": (197, 3072, 768),
}
SWIN_S: Linears = {
    "qkv, stage 1": (3136, 96, 288),
    "fc2, stage 1": (3136, 384, 96),
    "fc1, stage 3": (196, 384, 1536),
    "proj, stage 4": (49, 768, 768),
}
BLOCKS: dict[str, LayerSizes] = {
    "DeiT-B": ((1, 196, 64),) * 12,
    "Swin-S": ((64, 49, 32),) * 2 + ((16, 49, 32),) * 2 + ((4, 49, 32),) * 18 + ((1, 49, 32),) * 2,
}
TOY_BLOCKS: dict[str, LayerSizes] = {"toy ViT": ((1, 9, 16),) * 2, "toy Swin": ((4, 4, 16), (1, 4, 16))}


@dataclass(frozen=True)
class Settings:
    """Sizes and what stands in for a GPU."""

    rehearse: bool

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.rehearse else "cuda")

    @property
    def half(self) -> torch.dtype:
        """Triton's interpreter does not round to bfloat16 as a GPU does."""
        return torch.float16 if self.rehearse else torch.bfloat16

    @property
    def images(self) -> int:
        return 2 if self.rehearse else 32

    @property
    def batches(self) -> tuple[int, ...]:
        """The most telling first."""
        return (1,) if self.rehearse else (32, 1, 8, 128)

    @property
    def blocks(self) -> dict[str, LayerSizes]:
        return TOY_BLOCKS if self.rehearse else BLOCKS

    def linears(self, model: str) -> Linears:
        if self.rehearse:
            return {"fc1": (5, 32, 48)}
        return {"DeiT-B": DEIT_B, "Swin-S": SWIN_S}[model]

    @property
    def bandwidth(self) -> float:
        return 0.2 if self.rehearse else 0.01


def times(run: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Median, 20th and 80th percentile in microseconds."""
    median, low, high = (round(1e3 * value, 2) for value in milliseconds(run, device, 3))
    return {"median_us": median, "p20_us": low, "p80_us": high}


def launch_with_defaults() -> None:
    """From now on, launch with the static heuristics, whatever the tables hold."""
    nowhere = Path(__file__).parent / "no tables"
    os.environ["PSAQ_CACHE_DIR"] = str(nowhere)
    tuning.SHIPPED = nowhere
    tuning.forget_tables()

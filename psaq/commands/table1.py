"""``psaq table1``: the paper's Table 1, measured anew, in a run folder that can be resumed at any point."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from psaq.commands.options import Device
from psaq.models.table1_models import TABLE1_MODELS
from psaq.quantization.recipes import RECIPES
from psaq.synthesis.config import Preset

Method = Literal["Standard", "Gaussian", "PSAQ"]


@dataclass(frozen=True)
class Table1:
    """Repeat Table 1: every model quantised on real images, on noise and on synthesised images, and evaluated.

    Killed anywhere and started again, it goes on with the cells that are missing; asked for other models, recipes,
    bits, methods or seeds, it measures what is new and keeps the rest. Under torchrun all processes share the work.
    """

    imagenet: Path | None = None
    """ImageNet: a folder with val/ and train/, or of class folders by wnid, all or some, or a Hugging Face data set.
    Bundled models need none: they are measured on 1000 rendered scenes."""
    models: tuple[str, ...] = tuple(TABLE1_MODELS)
    """Table 1 names, timm tags or bundled models."""
    recipes: tuple[str, ...] = tuple(RECIPES)
    """How to quantise."""
    bits: tuple[str, ...] = ("W4A8", "W8A8")
    """Bits of weights and activations."""
    methods: tuple[Method, ...] = ("Standard", "Gaussian", "PSAQ")
    """What to calibrate on: real images, noise, synthesised images."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of noise and of synthesis; real images are the same for all."""
    weights_dir: Path | None = None
    """A folder of safetensors files named by short name or timm tag; a model without one gets its published weights."""
    images: Annotated[int, tyro.conf.arg(aliases=["--limit"])] = 50_000
    """Evaluate on so many images at most, evenly spread over all: a few hundred for a quick look."""
    calibration: Path | None = None
    """Real images for Standard, evenly spread over all in sorted order; by default from train/ beside val/."""
    crop_pct: float | None = None
    """Part of the resized side that the centre crop keeps, in evaluation; by default each model's own."""
    calibration_crop_pct: float | None = None
    """The same for the real calibration images."""
    num_images: int = 32
    """Calibration images of every kind."""
    preset: Preset = "default"
    """How to synthesise: psaq's schedule, the authors' (paper), also with their formulas (faithful), or images to look
    at (pictures)."""
    steps: int | None = None
    """Steps of each round of the synthesis; by default the preset's."""
    synthesized: str | None = None
    """Runs of `psaq synthesize` to take the images from, with {model} and {seed} in the path."""
    batch_size: int = 50
    """Images per batch of the evaluation."""
    workers: int | None = None
    """Processes that read images beside each computing one; by default none on a CPU, up to 16 beside a GPU."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    out: Path = Path("runs/table1")
    """The run's folder."""

    scales_out = True

    def run(self) -> None:
        from psaq.commands.work.table1 import run

        run(self)

"""``psaq table1``: the paper's Table 1, measured anew, in a run folder that can be resumed at any point."""

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro
from torch import nn

from psaq.commands.options import Device, choose_device
from psaq.commands.synthesize import Preset
from psaq.distributed import LostRankError, first_says, is_first, local_size, say, together
from psaq.errors import PsaqError
from psaq.experiments.cells import Cell, CellStore, Result
from psaq.experiments.comparison import PSAQ, STANDARD
from psaq.experiments.labelled import ImageSource
from psaq.experiments.summary import markdown, mean_rows, write_cells
from psaq.experiments.table1 import Bench, Setup, weights_file
from psaq.files import write_text
from psaq.images.preprocessing import check_crop_pct
from psaq.models.micro import MICRO_MODELS
from psaq.models.zoo import TABLE1_MODELS, load_model, named_source
from psaq.quantization.recipes import RECIPES, parse_precision
from psaq.reports import write_report
from psaq.runs import RunFolder
from psaq.suggestions import did_you_mean
from psaq.synthesis import SynthesisConfig

Method = Literal["Standard", "Gaussian", "PSAQ"]
_MOST_WORKERS = 16


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
    """How to synthesise: psaq's schedule, the authors' (paper), or also with their formulas (faithful)."""
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
        with together():
            self._check()
            run = RunFolder(self.out, "table1", self._settings())
        store = CellStore(self.out / "cells")
        skipped: dict[str, str] = {}
        for name in dict.fromkeys(self.models):
            with run.timed(name):
                reason = self._measure(name, store)
            if reason is not None:
                skipped[name] = reason
        with together():
            if is_first():
                self._finish(run, store, skipped)

    def _measure(self, name: str, store: CellStore) -> str | None:
        """Measure a model's missing cells. Returns why it could not be had, where it could not."""
        cells, setup = list(self._cells(name)), self._setup()
        missing = [cell for cell in cells if not first_says(partial(store.has, cell))]
        to_draw = PSAQ in self.methods and not setup.drawn(name)
        if not missing and not to_draw:
            return None
        try:
            with together():
                model = self._load(name)
        except LostRankError:
            raise
        except PsaqError as error:
            say(f"{name}: skipped: {error}")
            return str(error)
        bench = Bench(name, model, setup)
        with together():
            store.check_weights((cell for cell in cells if cell not in missing), bench.weights)
        if any(cell.method == PSAQ for cell in missing):
            bench.find_images()
        for cell in missing:
            _keep(store, bench.measure(cell))
        if to_draw:
            bench.draw(with_real=STANDARD in self.methods)
        return None

    def _cells(self, name: str) -> Iterator[Cell]:
        for recipe in dict.fromkeys(self.recipes):
            for bits in dict.fromkeys(self.bits):
                for method in dict.fromkeys(self.methods):
                    seeds = (0,) if method == STANDARD else dict.fromkeys(self.seeds)
                    yield from (Cell(name, recipe, bits.upper(), method, seed) for seed in seeds)

    def _load(self, name: str) -> nn.Module:
        file = weights_file(self.weights_dir, name)
        try:
            return load_model(name, file).to(choose_device(self.device))
        except PsaqError as error:
            if file is not None:
                raise
            raise PsaqError(f"{error} (here: {name}.safetensors in the folder of --weights-dir)") from error

    def _setup(self) -> Setup:
        return Setup(
            source=self._source(),
            synthesis=self._synthesis(),
            seeds=tuple(dict.fromkeys(self.seeds)),
            synthesized=self.synthesized,
            batch_size=self.batch_size,
            workers=self._workers(),
            folder=self.out,
        )

    def _source(self) -> ImageSource:
        return ImageSource(self.imagenet, self.images, self.crop_pct, self.calibration, self.calibration_crop_pct)

    def _synthesis(self) -> SynthesisConfig:
        config = SynthesisConfig() if self.preset == "default" else SynthesisConfig.paper(self.preset == "faithful")
        return replace(config, num_images=self.num_images, steps=config.steps if self.steps is None else self.steps)

    def _workers(self) -> int:
        if self.workers is not None:
            return self.workers
        cores = (os.cpu_count() or 1) // local_size()
        return min(_MOST_WORKERS, cores - 1) if choose_device(self.device).type == "cuda" else 0

    def _settings(self) -> dict[str, object]:
        """What the figures depend on: a folder holds cells of one such configuration."""
        source = {name: _absolute(value) for name, value in vars(self._source()).items()}
        return {**source, "synthesis": replace(self._synthesis(), seed=0), "batch_size": self.batch_size}

    def _check(self) -> None:
        """Raise PsaqError for whatever can be seen to be wrong before the work."""
        for name in self.models:
            named_source(name)
        for recipe in self.recipes:
            if recipe not in RECIPES:
                raise PsaqError(f"recipe {recipe!r}: there is none of that name{did_you_mean(recipe, RECIPES)}")
            for bits in self.bits:
                RECIPES[recipe](*parse_precision(bits))
        for option in ("models", "recipes", "bits", "methods", "seeds"):
            if not getattr(self, option):
                raise PsaqError(f"{option}: none is named; name at least one")
        self._check_numbers()
        if self.weights_dir is not None and not self.weights_dir.is_dir():
            raise PsaqError(f"{self.weights_dir}: there is no such folder of weights")
        self._check_images()

    def _check_numbers(self) -> None:
        at_least = [("images", self.images, 1), ("batch_size", self.batch_size, 1)]
        at_least += [("seeds", min(self.seeds), 0), ("workers", self.workers or 0, 0)]
        for option, value, least in at_least:
            if value < least:
                raise PsaqError(f"{option} {value}: must be at least {least}")
        for crop_pct in (self.crop_pct, self.calibration_crop_pct):
            check_crop_pct(crop_pct)

    def _check_images(self) -> None:
        for name in self.models:
            if name not in MICRO_MODELS:
                source = self._source()
                source.check(name)
                if STANDARD in self.methods:
                    say(f"Standard: {self.num_images} real images, evenly spread over {source.training_folder(name)}")
                return

    def _finish(self, run: RunFolder, store: CellStore, skipped: dict[str, str]) -> None:
        cells = [cell for name in dict.fromkeys(self.models) if name not in skipped for cell in self._cells(name)]
        if not cells:
            raise PsaqError(f"no model could be had: {'; '.join(f'{name}: {why}' for name, why in skipped.items())}")
        results = [store.read(cell) for cell in cells]
        rows = mean_rows(results)
        text = _explained(markdown(rows), results, skipped)
        write_cells(self.out / "table.csv", results)
        write_text(self.out / "table.md", f"{text}\n\nMade by `{_command_line()}`.\n")
        run.finish(
            {"table": rows, "command line": _command_line(), **{f"skipped {name}": skipped[name] for name in skipped}}
        )
        print(f"\n{text}\n\nIn {self.out}: table.md, table.csv (every cell), run.json, {write_report(self.out)}")


def _absolute(value: object) -> object:
    return value.resolve() if isinstance(value, Path) else value


def _keep(store: CellStore, result: Result) -> None:
    with together():
        if is_first():
            store.write(result)
    say(f"{result.cell}: {result.report}, FP {result.fp_top1:.2f} %")


def _explained(table: str, results: Sequence[Result], skipped: dict[str, str]) -> str:
    images = " and ".join(str(n) for n in dict.fromkeys(result.report.n for result in results))
    lines = [f"Top-1 in % on {images} images, mean ± standard deviation over seeds; in brackets: the paper's."]
    lines += [f"{name}: skipped: {reason}" for name, reason in skipped.items()]
    return "\n\n".join([table, *lines])


def _command_line() -> str:
    return shlex.join(["psaq", *sys.argv[1:]])

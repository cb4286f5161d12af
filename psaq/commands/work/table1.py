"""What ``psaq table1`` does."""

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from torch import nn

from psaq.commands.options import choose_device
from psaq.commands.table1 import Table1
from psaq.distributed import LostRankError, first_says, is_first, local_size, say, together
from psaq.errors import PsaqError
from psaq.files import write_text
from psaq.images.preprocessing import check_crop_pct
from psaq.models.micro import MICRO_MODELS
from psaq.models.zoo import load_model, named_source
from psaq.quantization.recipes import RECIPES, parse_precision
from psaq.reports import write_report
from psaq.runs import RunFolder
from psaq.suggestions import did_you_mean
from psaq.synthesis import SynthesisConfig
from psaq.synthesis.config import PRESETS
from psaq.tables.bench import Bench, Setup, weights_file
from psaq.tables.cells import Cell, CellStore, Result
from psaq.tables.comparison import PSAQ, STANDARD
from psaq.tables.labelled import ImageSource
from psaq.tables.summary import markdown, mean_rows, write_cells

Method = Literal["Standard", "Gaussian", "PSAQ"]
_MOST_WORKERS = 16


def run(options: Table1) -> None:
    with together():
        _check(options)
        run = RunFolder(options.out, "table1", _settings(options), device=choose_device(options.device))
    store = CellStore(options.out / "cells")
    skipped: dict[str, str] = {}
    for name in dict.fromkeys(options.models):
        with run.timed(name):
            reason = _measure(options, name, store)
        if reason is not None:
            skipped[name] = reason
    with together():
        if is_first():
            _finish(options, run, store, skipped)


def _measure(options: Table1, name: str, store: CellStore) -> str | None:
    """Measure a model's missing cells. Returns why it could not be had, where it could not."""
    cells, setup = list(_cells(options, name)), _setup(options)
    missing = [cell for cell in cells if not first_says(partial(store.has, cell))]
    to_draw = PSAQ in options.methods and not setup.drawn(name)
    if not missing and not to_draw:
        return None
    try:
        with together():
            model = _load(options, name)
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
        bench.draw(with_real=STANDARD in options.methods)
    return None


def _cells(options: Table1, name: str) -> Iterator[Cell]:
    for recipe in dict.fromkeys(options.recipes):
        for bits in dict.fromkeys(options.bits):
            for method in dict.fromkeys(options.methods):
                seeds = (0,) if method == STANDARD else dict.fromkeys(options.seeds)
                yield from (Cell(name, recipe, bits.upper(), method, seed) for seed in seeds)


def _load(options: Table1, name: str) -> nn.Module:
    file = weights_file(options.weights_dir, name)
    try:
        return load_model(name, file).to(choose_device(options.device))
    except PsaqError as error:
        if file is not None:
            raise
        raise PsaqError(f"{error} (here: {name}.safetensors in the folder of --weights-dir)") from error


def _setup(options: Table1) -> Setup:
    return Setup(
        source=_source(options),
        synthesis=synthesis_config(options),
        seeds=tuple(dict.fromkeys(options.seeds)),
        synthesized=options.synthesized,
        batch_size=options.batch_size,
        workers=_workers(options),
        folder=options.out,
    )


def _source(options: Table1) -> ImageSource:
    evaluation = (options.imagenet, options.images, options.crop_pct)
    return ImageSource(*evaluation, options.calibration, options.calibration_crop_pct)


def synthesis_config(options: Table1) -> SynthesisConfig:
    config = PRESETS[options.preset]
    steps = config.steps if options.steps is None else options.steps
    return replace(config, num_images=options.num_images, steps=steps)


def _workers(options: Table1) -> int:
    if options.workers is not None:
        return options.workers
    cores = (os.cpu_count() or 1) // local_size()
    return min(_MOST_WORKERS, cores - 1) if choose_device(options.device).type == "cuda" else 0


def _settings(options: Table1) -> dict[str, object]:
    """What the figures depend on: a folder holds cells of one such configuration."""
    source = {name: _absolute(value) for name, value in vars(_source(options)).items()}
    return {**source, "synthesis": replace(synthesis_config(options), seed=0), "batch_size": options.batch_size}


def _check(options: Table1) -> None:
    """Raise PsaqError for whatever can be seen to be wrong before the work."""
    for name in options.models:
        named_source(name)
    for recipe in options.recipes:
        if recipe not in RECIPES:
            raise PsaqError(f"recipe {recipe!r}: there is none of that name{did_you_mean(recipe, RECIPES)}")
        for bits in options.bits:
            RECIPES[recipe](*parse_precision(bits))
    for option in ("models", "recipes", "bits", "methods", "seeds"):
        if not getattr(options, option):
            raise PsaqError(f"{option}: none is named; name at least one")
    _check_numbers(options)
    if options.weights_dir is not None and not options.weights_dir.is_dir():
        raise PsaqError(f"{options.weights_dir}: there is no such folder of weights")
    _check_images(options)


def _check_numbers(options: Table1) -> None:
    at_least = [("images", options.images, 1), ("batch_size", options.batch_size, 1)]
    at_least += [("seeds", min(options.seeds), 0), ("workers", options.workers or 0, 0)]
    for option, value, least in at_least:
        if value < least:
            raise PsaqError(f"{option} {value}: must be at least {least}")
    for crop_pct in (options.crop_pct, options.calibration_crop_pct):
        check_crop_pct(crop_pct)


def _check_images(options: Table1) -> None:
    for name in options.models:
        if name not in MICRO_MODELS:
            source = _source(options)
            source.check(name)
            if STANDARD in options.methods:
                say(f"Standard: {options.num_images} real images, evenly spread over {source.training_folder(name)}")
            return


def _finish(options: Table1, run: RunFolder, store: CellStore, skipped: dict[str, str]) -> None:
    cells = [cell for name in dict.fromkeys(options.models) if name not in skipped for cell in _cells(options, name)]
    if not cells:
        raise PsaqError(f"no model could be had: {'; '.join(f'{name}: {why}' for name, why in skipped.items())}")
    results = [store.read(cell) for cell in cells]
    rows = mean_rows(results)
    text = _explained(markdown(rows), results, skipped)
    write_cells(options.out / "table.csv", results)
    write_text(options.out / "table.md", f"{text}\n\nMade by `{_command_line()}`.\n")
    run.finish(
        {"table": rows, "command line": _command_line(), **{f"skipped {name}": skipped[name] for name in skipped}}
    )
    print(f"\n{text}\n\nIn {options.out}: table.md, table.csv (every cell), run.json, {write_report(options.out)}")


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

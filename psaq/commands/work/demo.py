"""What ``psaq demo`` does."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import Any

import torch

from psaq.commands.demo import Demo
from psaq.commands.evaluate import PREDICTIONS_FILE
from psaq.commands.options import choose_device
from psaq.errors import PsaqError
from psaq.evaluation import evaluate
from psaq.figures.densities import draw_densities
from psaq.figures.samples import draw_run
from psaq.files import write_whole
from psaq.images.batches import CalibrationImages, gaussian_images
from psaq.images.held_out import CALIBRATION_SEED, HELD_OUT_SEED, calibration_scenes, held_out_scenes
from psaq.images.scenes import SceneDataset
from psaq.models.micro import MICRO_DENSE, MICRO_MODELS
from psaq.models.zoo import load_model
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe, parse_precision
from psaq.reports import write_report
from psaq.runs import RunFolder
from psaq.synthesis.folder import synthesize_into
from psaq.tables.comparison import GAUSSIAN, PSAQ, STANDARD, Row, compare_sources, table, write_rows
from psaq.tasks.pictures import draw_predictions
from psaq_plots import save_figure

WHY = (
    "A range reaches from the least to the largest value that calibration met: noise excites attention too little, so "
    "that its ranges cut real values off; a few extreme scenes stretch the real ones, so that all others share fewer "
    "steps; those of synthesised images lie between."
)
"""Why they differ: read off the ranges of both models at `EXPLAINED`."""
EXPLAINED = "W4A4"
SOURCES = {STANDARD: "real scenes", GAUSSIAN: "noise", PSAQ: "synthesised images"}


def run(options: Demo) -> None:
    if options.scenes < 1:
        raise PsaqError(f"--scenes {options.scenes}: must be at least 1")
    recipes = [Recipe.paper(*parse_precision(precision)) for precision in options.precisions]
    config, device = replace(options, out=Path()), choose_device(options.device)
    run = RunFolder(options.out, "demo", config, options.synthesis.seed, device=device)
    rows: list[Row] = []
    for name in MICRO_MODELS:
        with run.timed(name):
            rows.extend(_compare(options, name, recipes))
    dense = []
    for name in MICRO_DENSE:
        with run.timed(name):
            dense.append(_dense_line(options, name, recipes[-1]))
    write_rows(options.out / "table.csv", rows)
    summary = f"{seen(rows)} {WHY}" if rows[-1].precision == EXPLAINED else seen(rows)
    run.finish({"table": [row.flat() for row in rows], "summary": summary, "boxes and pixels": "; ".join(dense)})
    lines = "\n".join(dense)
    print(f"\n{table(rows)}\n\n{fill(summary, 120)}\n\n{lines}\n")
    print(f"Everything is in {options.out}: table.csv, run.json, each model's images and figures;")
    print(f"all at a glance in {write_report(options.out)}")


def seen(rows: Sequence[Row]) -> str:
    """What the models keep at the last precision, by what they were calibrated on."""
    kept: dict[str, list[Row]] = {}
    for row in rows:
        if row.precision == rows[-1].precision:
            kept.setdefault(row.model, []).append(row)
    sources = " / ".join(SOURCES[row.method] for row in next(iter(kept.values())))
    scores = "; ".join(f"{model} keeps {_scores(of_model)}" for model, of_model in kept.items())
    return f"At {rows[-1].precision}, calibrated on {sources}, {scores}."


def _compare(options: Demo, name: str, recipes: list[Recipe]) -> Iterator[Row]:
    model = load_model(name).to(choose_device(options.device))
    folder = options.out / name
    images = synthesize_into(folder, model, options.synthesis, progress=True)
    sources: dict[str, CalibrationImages] = {
        STANDARD: calibration_scenes(model, options.synthesis.num_images),
        GAUSSIAN: gaussian_images(model, options.synthesis.num_images, options.synthesis.seed),
        PSAQ: images,
    }
    draw_run(images, model, folder)
    named = {"noise": sources[GAUSSIAN], "real": sources[STANDARD], "generated": sources[PSAQ]}
    draw_densities(named, model, folder)
    scenes = SceneDataset(options.scenes, HELD_OUT_SEED, model)
    yield from compare_sources(name, model, sources, recipes, scenes, progress=True)


def _dense_line(options: Demo, name: str, recipe: Recipe) -> str:
    """A model of boxes or pixels: its score in full precision, and quantised by each source of images."""
    model = load_model(name).to(choose_device(options.device))
    folder = options.out / name
    # A weight is chosen for classifiers: one of these has no classes, the other's loss is of another size.
    weight = 0.0 if options.synthesis.class_weight == 0 else None
    images = synthesize_into(folder, model, replace(options.synthesis, class_weight=weight), progress=True)
    real = held_out_scenes(name, options.synthesis.num_images, model, CALIBRATION_SEED)
    sources: dict[str, CalibrationImages] = {
        STANDARD: torch.stack([real[index][0] for index in range(options.synthesis.num_images)]),
        GAUSSIAN: gaussian_images(model, options.synthesis.num_images, options.synthesis.seed),
        PSAQ: images,
    }
    pictures: Any = held_out_scenes(name, options.scenes, model)
    scores, full, what = [], 0.0, ""
    for method, each in sources.items():
        qmodel = quantize(model, each, recipe)
        report = evaluate(qmodel, pictures, model, progress=True)
        assert report.reference is not None
        (what, score), (_, full) = report.headline, report.reference.headline
        scores.append(f"{method} {score:.2f} ({report.agreement:.1f})")
    examples = [pictures.picture(index) for index in range(min(3, options.scenes))]
    figure = draw_predictions(model, qmodel, examples, pictures.class_names())
    write_whole(folder / PREDICTIONS_FILE, partial(save_figure, figure))
    return f"{name} {what}: FP {full:.2f}, W{recipe.weights}A{recipe.activations} {', '.join(scores)}"


def _scores(rows: Sequence[Row]) -> str:
    return f"{' / '.join(f'{row.report.top1:.1f}' for row in rows)}% of full precision's {rows[0].fp_top1:.1f}%"

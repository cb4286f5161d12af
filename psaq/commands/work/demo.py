"""``psaq demo``: the main job on the bundled models, from nothing to a table, in minutes on a laptop."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from psaq.commands.demo import Demo
from psaq.commands.evaluate import PREDICTIONS_FILE
from psaq.commands.options import choose_device
from psaq.evaluation import evaluate
from psaq.experiments.comparison import GAUSSIAN, PSAQ, STANDARD, Row, compare_sources, table, write_rows
from psaq.experiments.fig2 import draw_run
from psaq.experiments.fig3 import draw_densities
from psaq.images.batches import CalibrationImages, gaussian_images
from psaq.images.held_out import HELD_OUT_SEED, held_out_scenes
from psaq.images.scenes import SceneDataset
from psaq.models.micro import MICRO_DENSE, MICRO_MODELS
from psaq.models.zoo import load_model
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe, parse_precision
from psaq.reports import write_report
from psaq.runs import RunFolder
from psaq.synthesis.folder import synthesize_into
from psaq.tasks.pictures import draw_predictions
from psaq_plots import save_figure

CALIBRATION_SEED = 1_000_037
"""Of the scenes that stand for real images: neither trained nor evaluated on."""


def run(options: Demo) -> None:
    recipes = [Recipe.paper(*parse_precision(precision)) for precision in options.precisions]
    run = RunFolder(options.out, "demo", replace(options, out=Path()), options.synthesis.seed)
    rows: list[Row] = []
    for name in MICRO_MODELS:
        with run.timed(name):
            rows.extend(_compare(options, name, recipes))
    dense = []
    for name in MICRO_DENSE:
        with run.timed(name):
            dense.append(_dense_line(options, name, recipes[-1]))
    write_rows(options.out / "table.csv", rows)
    run.finish({"table": [row.flat() for row in rows], "boxes and pixels": "; ".join(dense)})
    lines = "\n".join(dense)
    print(f"\n{table(rows)}\n{lines}\n")
    print(f"Everything is in {options.out}: table.csv, run.json, each model's images and figures;")
    print(f"all at a glance in {write_report(options.out)}")


def _compare(options: Demo, name: str, recipes: list[Recipe]) -> Iterator[Row]:
    model = load_model(name).to(choose_device(options.device))
    folder = options.out / name
    images = synthesize_into(folder, model, options.synthesis, progress=True)
    sources: dict[str, CalibrationImages] = {
        STANDARD: real_images(model, options.synthesis.num_images),
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
    images = synthesize_into(folder, model, options.synthesis, progress=True)
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
    examples = [pictures.picture(index) for index in range(3)]
    save_figure(draw_predictions(model, qmodel, examples, pictures.class_names()), folder / PREDICTIONS_FILE)
    return f"{name} {what}: FP {full:.2f}, W{recipe.weights}A{recipe.activations} {', '.join(scores)}"


def real_images(model: nn.Module, count: int) -> Tensor:
    """Scenes that stand for the real images Table 1's "Standard" is calibrated on."""
    return torch.stack([image for image, _ in SceneDataset(count, CALIBRATION_SEED, model).__getitems__(range(count))])

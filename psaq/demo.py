"""``psaq demo``: the main job on the bundled models, from nothing to a table, in minutes on a laptop."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from psaq.cli import run_command
from psaq.commands.evaluate import PREDICTIONS_FILE
from psaq.commands.options import Device, choose_device
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
from psaq.synthesis import SynthesisConfig
from psaq.synthesis.folder import synthesize_into
from psaq.tasks.pictures import draw_predictions
from psaq_plots import save_figure

CALIBRATION_SEED = 1_000_037
"""Of the scenes that stand for real images: neither trained nor evaluated on."""


@dataclass(frozen=True)
class Demo:
    """Quantise the bundled models with no data and compare with calibration on real images and on noise."""

    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    scenes: int = 1000
    """Held-out scenes to evaluate on."""
    precisions: tuple[str, ...] = ("W8A8", "W4A8")
    """Bits of weights and activations."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU where there is one."""
    out: Path = Path("runs/demo")
    """The run's folder."""

    def run(self) -> None:
        recipes = [Recipe.paper(*parse_precision(precision)) for precision in self.precisions]
        run = RunFolder(self.out, "demo", replace(self, out=Path()), self.synthesis.seed)
        rows: list[Row] = []
        for name in MICRO_MODELS:
            with run.timed(name):
                rows.extend(self._compare(name, recipes))
        dense = []
        for name in MICRO_DENSE:
            with run.timed(name):
                dense.append(self._dense_line(name, recipes[-1]))
        write_rows(self.out / "table.csv", rows)
        run.finish({"table": [row.flat() for row in rows], "boxes and pixels": "; ".join(dense)})
        lines = "\n".join(dense)
        print(f"\n{table(rows)}\n{lines}\n")
        print(f"Everything is in {self.out}: table.csv, run.json, each model's images and figures;")
        print(f"all at a glance in {write_report(self.out)}")

    def _compare(self, name: str, recipes: list[Recipe]) -> Iterator[Row]:
        model = load_model(name).to(choose_device(self.device))
        folder = self.out / name
        images = synthesize_into(folder, model, self.synthesis)
        sources: dict[str, CalibrationImages] = {
            STANDARD: real_images(model, self.synthesis.num_images),
            GAUSSIAN: gaussian_images(model, self.synthesis.num_images, self.synthesis.seed),
            PSAQ: images,
        }
        draw_run(images, model, folder)
        named = {"noise": sources[GAUSSIAN], "real": sources[STANDARD], "generated": sources[PSAQ]}
        draw_densities(named, model, folder)
        yield from compare_sources(name, model, sources, recipes, SceneDataset(self.scenes, HELD_OUT_SEED, model))

    def _dense_line(self, name: str, recipe: Recipe) -> str:
        """A model of boxes or pixels: its score in full precision, and quantised by each source of images."""
        model = load_model(name).to(choose_device(self.device))
        folder = self.out / name
        images = synthesize_into(folder, model, self.synthesis)
        real = held_out_scenes(name, self.synthesis.num_images, model, CALIBRATION_SEED)
        sources: dict[str, CalibrationImages] = {
            STANDARD: torch.stack([real[index][0] for index in range(self.synthesis.num_images)]),
            GAUSSIAN: gaussian_images(model, self.synthesis.num_images, self.synthesis.seed),
            PSAQ: images,
        }
        pictures: Any = held_out_scenes(name, self.scenes, model)
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


if __name__ == "__main__":
    run_command(Demo)

"""``psaq evaluate``: what a quantised model costs beside its full-precision original."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from psaq.commands.options import ModelOptions
from psaq.commands.quantize import MODEL_FILE
from psaq.distributed import is_first, together
from psaq.errors import PsaqError
from psaq.evaluation import evaluate
from psaq.images.coco import coco
from psaq.images.folder import counted
from psaq.images.held_out import held_out_scenes
from psaq.images.imagenet import ImageFolder, imagenet
from psaq.images.masks import segmentation
from psaq.images.pictures import picture_files
from psaq.images.preprocessing import preprocessing_for
from psaq.models.micro import MICRO_DENSE, MICRO_MODELS
from psaq.quantization.checkpoint import load
from psaq.reports import write_report
from psaq.runs import RunFolder
from psaq.tasks.find import task_of
from psaq.tasks.pictures import draw_predictions
from psaq.tasks.task import TaskName, TaskReport
from psaq_plots import save_figure

PREDICTIONS_FILE = "predictions.png"


@dataclass(frozen=True)
class Evaluate:
    """Measure a model on pictures of which the truth is known, and where a quantised model is given, its agreement with
    the full-precision one and the noise in its answers.

    Classes are scored by top-1 and top-5, pixels by mIoU, boxes by COCO's average precision.
    """

    model: ModelOptions = field(default_factory=ModelOptions)
    quantized: Path | None = None
    """A run of ``psaq quantize``, or its file; without it the full-precision model is measured alone."""
    task: TaskName | None = None
    """What the model is for; by default found from the model and its output."""
    images: Path | None = None
    """A folder of pictures. For classes with one subfolder per class: ImageNet's wnids, all or some, or the model's
    classes in order; or a Hugging Face ImageNet data set. For features any folder."""
    annotations: Path | None = None
    """For detection: the pictures' boxes, a JSON file in COCO's format."""
    labels: tuple[int, ...] = ()
    """For boxes and pixels: the number that stands in the annotations or masks for each of the model's labels, in
    order, where it is another."""
    masks: Path | None = None
    """For segmentation: a folder of masks that bear the pictures' names."""
    ignore: int = 255
    """For segmentation: the number that stands for void in the masks."""
    scenes: int = 1000
    """Without a folder, the bundled models are measured on so many held-out rendered scenes."""
    crop_pct: float | None = None
    """For classes: part of the resized image's side that the centre crop keeps; by default the model's own."""
    batch_size: int = 50
    """Images per batch."""
    workers: int = 0
    """Processes that read images beside this one."""
    pictures: int = 4
    """With --out, for pixels and boxes: so many of the pictures are drawn with what both models find in them."""
    out: Path | None = None
    """Also write the configuration, the results and their page into this run folder."""

    scales_out = True

    def run(self) -> None:
        with together():
            self._check()
            model = self.model.load()
            dataset = self._dataset(model)
            run = None if self.out is None else RunFolder(self.out, "evaluate", {**asdict(self), "out": None})
            quantized = None if self.quantized is None else self._load(self.quantized, model)
        reports = self._reports(model, quantized, dataset)
        passed_over = getattr(dataset, "passed_over", None)
        if is_first():
            self._print(reports)
            if passed_over:
                print(f"{self.images}: {counted(passed_over)}")
        if run is not None:
            results: dict[str, Any] = {name: report.as_dict() for name, report in reports.items()}
            run.finish(results | ({"pictures": counted(passed_over)} if passed_over else {}))
            if is_first():
                self._draw(run.path, model, quantized, dataset)

    def _check(self) -> None:
        """Raise PsaqError where options do not go together."""
        asked = {"annotations": self.annotations, "masks": self.masks}
        named = [name for name, value in asked.items() if value is not None]
        if len(named) > 1:
            raise PsaqError(
                "--annotations and --masks: the first is for boxes, the second for pixels; give one of them"
            )
        alone = {"labels": (self.labels, not named), "ignore": (self.ignore != 255, self.masks is None)}
        alone["crop-pct"] = (self.crop_pct is not None, bool(named))
        for name, (given, useless) in alone.items():
            if given and useless:
                raise PsaqError(f"--{name}: does nothing for what is measured here; leave it out")
        if self.pictures < 0:
            raise PsaqError(f"--pictures {self.pictures}: must be at least 0")
        fitting = {"annotations": "detection", "masks": "segmentation"}
        for name in named:
            if self.images is None:
                raise PsaqError(f"--{name}: name the folder of the pictures, too, with --images DIR")
            if self.task not in (None, fitting[name]):
                raise PsaqError(f"--{name}: is for {fitting[name]}, not for --task {self.task}")

    def _dataset(self, model: nn.Module) -> Dataset[Any]:
        if self.images is not None and self.annotations is not None:
            return coco(self.images, self.annotations, model, self.labels or None)
        if self.images is not None and self.masks is not None:
            return segmentation(self.images, self.masks, model, self.ignore, self.labels or None)
        lacking = {"detection": "--annotations FILE", "segmentation": "--masks DIR"}
        task = task_of(model, self.task).name
        if self.images is None and self.model.model in (*MICRO_MODELS, *MICRO_DENSE):
            return held_out_scenes(self.model.model, self.scenes, model)
        if task in lacking:
            raise PsaqError(f"model {self.model.model!r}: is for {task}; add --images DIR and {lacking[task]}")
        if self.images is not None and task == "features":
            files = picture_files([self.images])
            return ImageFolder([(file, 0) for file in files], preprocessing_for(model, self.crop_pct))
        if self.images is not None:
            return imagenet(self.images, model, self.crop_pct)
        raise PsaqError(f"model {self.model.model!r}: name a folder of labelled images with --images DIR")

    def _load(self, path: Path, model: nn.Module) -> nn.Module:
        file = path / MODEL_FILE if path.is_dir() else path
        return load(file, model).to(next(model.parameters()).device)

    def _reports(self, model: nn.Module, quantized: nn.Module | None, dataset: Dataset[Any]) -> dict[str, TaskReport]:
        options: dict[str, Any] = {"task": self.task, "batch_size": self.batch_size, "workers": self.workers}
        if quantized is None:
            return {"fp": evaluate(model, dataset, **options, progress=True)}
        report = evaluate(quantized, dataset, model, **options, progress=True)
        assert report.reference is not None
        return {"fp": report.reference, "quantized": report}

    def _draw(self, folder: Path, model: nn.Module, quantized: nn.Module | None, dataset: Any) -> None:
        """What both models find in the first pictures, where it is boxes or pixels; and the page."""
        if quantized is not None and hasattr(dataset, "picture") and self.pictures > 0:
            pictures = [dataset.picture(index) for index in range(min(self.pictures, len(dataset)))]
            names = dataset.class_names() if hasattr(dataset, "class_names") else None
            figure = draw_predictions(model, quantized, pictures, names, self.task)
            save_figure(figure, folder / PREDICTIONS_FILE)
        write_report(folder)

    def _print(self, reports: dict[str, TaskReport]) -> None:
        print(f"{self.model.model}: {reports['fp']}")
        if "quantized" in reports:
            print(f"{self.quantized}: {reports['quantized']}")

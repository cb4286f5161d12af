"""What ``psaq evaluate`` does."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from psaq.commands.evaluate import PREDICTIONS_FILE, Evaluate
from psaq.commands.quantize import MODEL_FILE
from psaq.distributed import is_first, together
from psaq.errors import PsaqError
from psaq.evaluation import evaluate
from psaq.files import write_whole
from psaq.images.coco import coco
from psaq.images.folder import counted
from psaq.images.held_out import held_out_scenes
from psaq.images.imagenet import ImageFolder, imagenet
from psaq.images.masks import segmentation
from psaq.images.pictures import picture_files
from psaq.images.preprocessing import preprocessing_for
from psaq.models.place import device_of
from psaq.quantization.checkpoint import load
from psaq.reports import write_report
from psaq.runs import RunFolder
from psaq.tasks.find import task_of
from psaq.tasks.pictures import draw_predictions
from psaq.tasks.task import TaskReport
from psaq_plots import save_figure


def run(options: Evaluate) -> None:
    with together():
        options.check()
        model = options.model.load()
        dataset = _dataset(options, model)
        run = None if options.out is None else _run_folder(options, options.out, model)
        quantized = None if options.quantized is None else _load(options.quantized, model)
    reports = _reports(options, model, quantized, dataset)
    passed_over = getattr(dataset, "passed_over", None)
    if is_first():
        _print(options, reports)
        if passed_over:
            print(f"{options.images}: {counted(passed_over)}")
    if run is not None:
        results: dict[str, Any] = {name: report.as_dict() for name, report in reports.items()}
        run.finish(results | ({"pictures": counted(passed_over)} if passed_over else {}))
        if is_first():
            _draw(options, run.path, model, quantized, dataset)


def _run_folder(options: Evaluate, folder: Path, model: nn.Module) -> RunFolder:
    return RunFolder(folder, "evaluate", replace(options, out=None), device=device_of(model))


def _dataset(options: Evaluate, model: nn.Module) -> Dataset[Any]:
    if options.images is not None and options.annotations is not None:
        return coco(options.images, options.annotations, model, options.labels or None)
    if options.images is not None and options.masks is not None:
        return segmentation(options.images, options.masks, model, options.ignore, options.labels or None)
    lacking = {"detection": "--annotations FILE", "segmentation": "--masks DIR"}
    task = task_of(model, options.task).name
    if options.images is None and options.model.is_bundled:
        return held_out_scenes(options.model.model, options.scenes, model)
    if task in lacking:
        raise PsaqError(f"model {options.model.model!r}: is for {task}; add --images DIR and {lacking[task]}")
    if options.images is not None and task == "features":
        files = picture_files([options.images])
        return ImageFolder([(file, 0) for file in files], preprocessing_for(model, options.crop_pct))
    if options.images is not None:
        return imagenet(options.images, model, options.crop_pct)
    raise PsaqError(f"model {options.model.model!r}: name a folder of labelled images with --images DIR")


def _load(path: Path, model: nn.Module) -> nn.Module:
    file = path / MODEL_FILE if path.is_dir() else path
    return load(file, model).to(device_of(model))


def _reports(
    options: Evaluate, model: nn.Module, quantized: nn.Module | None, dataset: Dataset[Any]
) -> dict[str, TaskReport]:
    how: dict[str, Any] = {"task": options.task, "batch_size": options.batch_size, "workers": options.workers}
    if quantized is None:
        return {"fp": evaluate(model, dataset, **how, progress=True)}
    report = evaluate(quantized, dataset, model, **how, progress=True)
    assert report.reference is not None
    return {"fp": report.reference, "quantized": report}


def _draw(options: Evaluate, folder: Path, model: nn.Module, quantized: nn.Module | None, dataset: Any) -> None:
    """What both models find in the first pictures, where it is boxes or pixels; and the page."""
    if quantized is not None and hasattr(dataset, "picture") and options.pictures > 0:
        pictures = [dataset.picture(index) for index in range(min(options.pictures, len(dataset)))]
        names = dataset.class_names() if hasattr(dataset, "class_names") else None
        figure = draw_predictions(model, quantized, pictures, names, options.task)
        write_whole(folder / PREDICTIONS_FILE, partial(save_figure, figure))
    write_report(folder)


def _print(options: Evaluate, reports: dict[str, TaskReport]) -> None:
    print(f"{options.model.model}: {reports['fp']}")
    if "quantized" in reports:
        print(f"{options.quantized}: {reports['quantized']}")

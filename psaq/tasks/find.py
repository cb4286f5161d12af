"""What a model is for: as it is told, or as its output shows."""

from typing import Any

import torch
from torch import nn

from psaq.choices import TaskName
from psaq.models.borrowing import evaluating
from psaq.models.calling import logits_of, named_parts, run, takes
from psaq.models.data import data_config, find_data
from psaq.models.heads import checked_task, classes_or_none, says_nothing_of_classes
from psaq.models.place import tensor_of
from psaq.models.wrappers import innermost
from psaq.tasks.classification import Classification, Features
from psaq.tasks.detection import Detection
from psaq.tasks.segmentation import Segmentation
from psaq.tasks.task import Task

_TASKS: dict[TaskName, Task] = {task.name: task for task in (Classification(), Segmentation(), Detection(), Features())}


def task_of(model: nn.Module, told: TaskName | None = None) -> Task:
    """A model's task: the one named, what `psaq.describe` was told, or what its output to one black image shows.

    Raises:
        PsaqError: there is no such task, or nothing says what size the model's images have.
    """
    told = told or getattr(innermost(model), "psaq_task", None)
    if told is not None:
        return _TASKS[checked_task(told)]
    if classes_or_none(model) is not None:
        return _TASKS["classification"]
    if takes(model) == "list":
        return _TASKS["detection"]
    # Where nothing says how large its images are, nobody can ask it; what then answers with no classes has none.
    return _TASKS["classification" if find_data(model) is None else _of_output(_output(model), model)]


def _of_output(output: Any, model: nn.Module) -> TaskName:
    if says_nothing_of_classes(model) and logits_of(output) is not None:
        return "classification"
    parts = named_parts(output)
    if parts.get("pred_boxes") is not None:
        return "detection"
    if parts.get("masks_queries_logits") is not None:
        return "segmentation"
    logits = parts.get("logits", parts.get("out"))
    return "segmentation" if getattr(logits, "ndim", 0) == 4 else "features"


@torch.no_grad()
def _output(model: nn.Module) -> Any:
    config, like = data_config(model), tensor_of(model)
    with evaluating(model):
        return run(model, torch.zeros(1, config.channels, *config.image_size).to(like))

"""What every task offers."""

import math
from abc import ABC, abstractmethod
from dataclasses import fields
from typing import Any, ClassVar, Protocol

from torch import nn
from torch.utils.data import Dataset

from psaq.choices import TaskName
from psaq.tasks.reading import Reading


class TaskReport(Protocol):
    """The figures of one model on one data set."""

    @property
    def n(self) -> int:
        """Number of images."""

    @property
    def agreement(self) -> float | None:
        """In how much of what they answer two models agree, in percent; None without a reference."""

    @property
    def logit_sqnr(self) -> float | None:
        """Signal to quantisation noise over all that is answered before anything is chosen, in dB."""

    @property
    def reference(self) -> "TaskReport | None":
        """How the reference itself did."""

    @property
    def headline(self) -> tuple[str, float]:
        """The one figure that stands for all, in percent, and what it is called."""

    def as_dict(self) -> dict[str, Any]:
        """The figures by name, for JSON and CSV; None for what there is not."""


class Task(ABC):
    """How a model's answers are read and scored."""

    name: ClassVar[TaskName]

    @abstractmethod
    def evaluate(self, model: nn.Module, dataset: Dataset[Any], reference: Any, reading: Reading) -> TaskReport:
        """Score a model on (image, what is known of it), and compare it with a reference where there is one. Raises
        PsaqError where the model, the data set and the task do not fit."""


def known_figures(report: Any, labels: dict[str, tuple[str, str, str]]) -> str:
    """The figures that a report has, in words: name → (label, format, unit)."""
    values = ((*labels[name], getattr(report, name)) for name in labels)
    return ", ".join(
        f"{label} {value:{digits}}{unit}"
        for label, digits, unit, value in values
        if value is not None and not math.isnan(value)
    )


def figures(report: Any) -> dict[str, Any]:
    """A report's numbers by name; None for what is not a number. What it is compared with stands apart."""
    values = {field.name: getattr(report, field.name) for field in fields(report) if field.name != "reference"}
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}

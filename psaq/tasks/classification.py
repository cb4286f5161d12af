"""Classes, and answers of models without them: accuracy, agreement with the full-precision model, and noise."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import Dataset

from psaq.choices import TaskName
from psaq.distributed import gather_dealt, together
from psaq.errors import PsaqError
from psaq.models.answers import Answering
from psaq.models.borrowing import evaluating
from psaq.models.place import tensor_of
from psaq.progress import progress_bar
from psaq.tasks.decibels import decibels
from psaq.tasks.reading import Batches, Reading, Unlabelled, WithoutTruth, first_truth, read
from psaq.tasks.task import Task, figures, known_figures

Logits = Float[Tensor, "images classes"]


@dataclass(frozen=True)
class Report:
    """How a model did on a labelled dataset, and how it compares with a reference."""

    top1: float
    """Images whose most likely class is right, in percent; NaN without classes or labels."""
    top5: float
    """Images whose class is among the five most likely, in percent; NaN without classes or labels."""
    n: int
    """Number of images."""
    agreement: float | None = None
    """Images of which the reference predicts the same class, in percent; None without a reference or classes."""
    logit_sqnr: float | None = None
    """Signal to quantisation noise over all logits, or over the answers of a model without classes,
    10·log10(Σ ref² / Σ (ref − q)²), in dB; inf where equal."""
    reference: "Report | None" = field(default=None, repr=False, compare=False)
    """How the reference itself did."""

    @property
    def headline(self) -> tuple[str, float]:
        """The one figure that stands for all, in percent, and what it is called."""
        return "top-1", self.top1

    def as_dict(self) -> dict[str, float | int | None]:
        """The figures by name, for JSON and CSV; None for what there is not."""
        return figures(self)

    def __str__(self) -> str:
        labels = {
            "top1": ("top-1", ".2f", " %"),
            "top5": ("top-5", ".2f", " %"),
            "agreement": ("agreement", ".1f", " %"),
            "logit_sqnr": ("SQNR" if math.isnan(self.top1) else "logit SQNR", ".1f", " dB"),
        }
        return f"{known_figures(self, labels) or 'no classes and no reference'} ({self.n} images)"


class Classification(Task):
    """A row of logits for each image."""

    name: ClassVar[TaskName] = "classification"

    def evaluate(self, model: nn.Module, dataset: Dataset[Any], reference: Any, reading: Reading) -> Report:
        """Top-1, top-5, agreement and logit SQNR; the reference is a model, or the logits that it gave."""
        answers, dataset = Answering(model), self._labelled(dataset)
        logits, labels = _collected(answers, dataset, reading, "Evaluating")
        if isinstance(reference, nn.Module):
            reference, _ = _collected(Answering(reference), dataset, reading, "Reference")
        known = None if isinstance(dataset, Unlabelled) else labels
        has_classes = self._has_classes(answers)
        report = compare(logits, known, reference, has_classes)
        if reference is None:
            return report
        return replace(report, reference=compare(reference, known, has_classes=has_classes))

    def _labelled(self, dataset: Dataset[Any]) -> Dataset[Any]:
        """The data set. Raises PsaqError where it knows anything but a class of each image."""
        known = first_truth(dataset)
        if not _is_class(known):
            shape = f" of shape {tuple(known.shape)}" if isinstance(known, Tensor) else ""
            raise PsaqError(
                f"dataset {type(dataset).__name__}: knows a {type(known).__name__}{shape} of each picture, the model "
                "is for classification; give (image, class index), or name another task"
            )
        return dataset

    def _has_classes(self, answers: Answering) -> bool:
        return answers.has_classes


def _is_class(known: Any) -> bool:
    """Whether something is one class's number: a tensor of one axis would be compared with all images."""
    if isinstance(known, Tensor):
        return known.ndim == 0 and not known.is_floating_point()
    return isinstance(known, int | np.integer)


class Features(Classification):
    """Whatever a model without classes answers, as a row of numbers for each image: only the noise in it is known."""

    name: ClassVar[TaskName] = "features"

    def _labelled(self, dataset: Dataset[Any]) -> Dataset[Any]:
        return WithoutTruth(dataset)

    def _has_classes(self, answers: Answering) -> bool:
        return False


def compare(
    logits: Logits, labels: Int[Tensor, "images"] | None, reference: Logits | None = None, has_classes: bool = True
) -> Report:
    """The report on logits, or on other answers, that are already there; labels where they are known. Raises PsaqError
    where the shapes do not match."""
    report = Report(math.nan, math.nan, len(logits))
    if labels is not None and has_classes:
        report = _accuracy(logits, labels)
    if reference is None:
        return report
    if reference.shape != logits.shape:
        raise PsaqError(
            f"reference logits of shape {tuple(reference.shape)}: must be {tuple(logits.shape)}, as the model's are; "
            "take a reference with the same classes on the same images"
        )
    same = most_likely(logits, 1) == most_likely(reference, 1)
    return replace(
        report, agreement=_percent(same[:, 0]) if has_classes else None, logit_sqnr=logit_sqnr(logits, reference)
    )


def _accuracy(logits: Logits, labels: Int[Tensor, "images"]) -> Report:
    _check_labels(labels, logits.shape[1])
    hits = most_likely(logits, 5) == labels[:, None]
    return Report(_percent(hits[:, 0]), _percent(hits.any(1)), len(labels))


def most_likely(logits: Logits, count: int) -> Int[Tensor, "images count"]:
    """The ``count`` most likely classes of each image, or all where there are fewer, the likeliest first.

    Of classes with equal logits the first comes first. Clipped logits are often equal: calibrated on noise, the
    likeliest class of a real image shares its logit with a dozen others, and topk would choose as it pleases.
    """
    return logits.argsort(dim=1, descending=True, stable=True)[:, :count]


def logit_sqnr(logits: Logits, reference: Logits) -> float:
    """10·log10(Σ reference² / Σ (reference − logits)²) over all logits, in dB."""
    signal = reference.double().square().sum().item()
    noise = (reference.double() - logits.double()).square().sum().item()
    return decibels(signal, noise)


def collect_logits(
    model: nn.Module,
    dataset: Dataset[tuple[Tensor, int]],
    *,
    batch_size: int = 32,
    workers: int = 0,
    progress: bool = False,
    description: str = "Evaluating",
) -> tuple[Logits, Int[Tensor, "images"]]:
    """The model's logits on every image, or what it answers in their place, in order, and the labels. Raises PsaqError
    as `evaluate` does.

    Under torchrun the batches are dealt out to the ranks, and every rank gets all logits: a batch holds the same images
    whichever rank takes it, so that the result is that of one process of the same kind.
    """
    return _collected(Answering(model), dataset, Reading(batch_size, workers, progress), description)


@torch.no_grad()
def _collected(
    answers: Answering, dataset: Dataset[Any], reading: Reading, description: str
) -> tuple[Logits, Int[Tensor, "images"]]:
    batches = Batches.of(dataset, reading.batch_size)
    bar = {"description": description, "total": len(batches.own), "unit": "batch", "enabled": reading.progress}
    like = tensor_of(answers.model)
    logits, labels = [], []
    reader = read(dataset, batches, reading, pin=like.is_cuda)
    with evaluating(answers.model), together(), progress_bar(reader, **bar) as shown:  # type: ignore[arg-type]
        for images, targets in shown:
            logits.append(_checked(answers(images.to(like, non_blocking=True))).float().cpu())
            labels.append(targets)
    return torch.cat(gather_dealt(logits, batches.total)), torch.cat(gather_dealt(labels, batches.total))


def _checked(logits: Logits) -> Logits:
    if not logits.isfinite().all():
        raise PsaqError("the model's logits hold NaN or infinity; check its weights and the images")
    return logits


def _check_labels(labels: Int[Tensor, "images"], classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise PsaqError(f"labels from {low} to {high}: the model has the classes 0 to {classes - 1}")


def _percent(hits: Tensor) -> float:
    return 100 * hits.double().mean().item()

"""What quantisation costs: accuracy, agreement with the full-precision model, and noise in the logits."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from psaq.distributed import gather_dealt, own_share, together
from psaq.errors import PsaqError
from psaq.images.batches import batches_for
from psaq.images.synthetic import SyntheticImages
from psaq.models.answers import Answering
from psaq.progress import progress_bar

Logits = Float[Tensor, "images classes"]
_BATCHES_AHEAD = 4  # that each worker keeps ready


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

    def as_dict(self) -> dict[str, float | int | None]:
        """The figures by name, for JSON and CSV; None for what there is not."""
        return {
            name: None if value is not None and math.isnan(value) else value for name, value in asdict(self).items()
        }

    def __str__(self) -> str:
        figures = [
            ("top-1", self.top1, ".2f", " %"),
            ("top-5", self.top5, ".2f", " %"),
            ("agreement", self.agreement, ".1f", " %"),
            ("SQNR" if math.isnan(self.top1) else "logit SQNR", self.logit_sqnr, ".1f", " dB"),
        ]
        known = [
            f"{name} {value:{digits}}{unit}"
            for name, value, digits, unit in figures
            if value is not None and not math.isnan(value)
        ]
        return f"{', '.join(known) or 'no classes and no reference'} ({self.n} images)"


def evaluate(
    model: nn.Module,
    dataset: Dataset[tuple[Tensor, int]] | Float[Tensor, "images channels height width"] | SyntheticImages,
    reference: nn.Module | Logits | None = None,
    *,
    batch_size: int = 32,
    workers: int = 0,
    progress: bool = False,
) -> Report:
    """Run ``model`` over ``dataset`` of (normalised image, class index) and compare it with ``reference``.

    Args:
        dataset: or images alone, which have no classes to be right about: agreement and SQNR are what is left.
        reference: the full-precision model, or what `collect_logits` got from it on the same dataset.
        workers: processes that read images beside this one.

    Raises:
        PsaqError: an empty dataset, an unreadable image, a label that is no class of the model, logits with NaN.
    """
    labelled: Any = dataset
    if isinstance(dataset, Tensor | SyntheticImages):
        images = torch.cat(list(batches_for(model, dataset, batch_size)))
        labelled = TensorDataset(images, torch.zeros(len(images), dtype=torch.long))
    answers = Answering(model)
    logits, labels = collect_logits(answers, labelled, batch_size=batch_size, workers=workers, progress=progress)
    if isinstance(reference, nn.Module):
        reference, _ = collect_logits(
            reference, labelled, batch_size=batch_size, workers=workers, progress=progress, description="Reference"
        )
    return compare(logits, labels if labelled is dataset else None, reference, answers.has_classes)


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
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


@torch.no_grad()
def collect_logits(
    model: nn.Module | Answering,
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
    _check_options(dataset, batch_size, workers)
    answers = model if isinstance(model, Answering) else Answering(model)
    like = next(answers.model.parameters())
    device = like.device
    answers.model.eval()
    batches = _batches(len(dataset), batch_size)  # type: ignore[arg-type]
    own = own_share(batches)
    logits, labels = [], []
    reader = _read_batches(dataset, own, workers, pin=device.type == "cuda")
    with (
        together(),
        progress_bar(reader, description=description, total=len(own), unit="batch", enabled=progress) as bar,
    ):
        for images, targets in bar:
            logits.append(_checked(answers(images.to(like, non_blocking=True))).float().cpu())
            labels.append(targets)
    return torch.cat(gather_dealt(logits, len(batches))), torch.cat(gather_dealt(labels, len(batches)))


def _batches(images: int, batch_size: int) -> list[list[int]]:
    return [list(range(start, min(start + batch_size, images))) for start in range(0, images, batch_size)]


def _read_batches(
    dataset: Dataset[tuple[Tensor, int]], batches: Sequence[list[int]], workers: int, pin: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    ahead = _BATCHES_AHEAD if workers else None
    try:
        yield from DataLoader(
            dataset, batch_sampler=batches, num_workers=workers, pin_memory=pin, prefetch_factor=ahead
        )
    except PsaqError as error:
        # A worker process wraps the message in its own traceback; the last line is ours.
        raise PsaqError(str(error).strip().rpartition("PsaqError: ")[-1]) from None


def _check_options(dataset: Dataset[tuple[Tensor, int]], batch_size: int, workers: int) -> None:
    if batch_size < 1 or workers < 0:
        raise PsaqError(f"batch_size {batch_size}, workers {workers}: need at least 1 image a batch and 0 workers")
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise PsaqError(
            f"dataset {type(dataset).__name__}: must be a map-style Dataset of (image, class index), or images alone"
        )
    if len(dataset) == 0:
        raise PsaqError("the dataset is empty: evaluation needs at least one image")
    if not isinstance(dataset[0], tuple | list) or len(dataset[0]) != 2:
        raise PsaqError("dataset: its items must be (image, class index); give images alone as one tensor")


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

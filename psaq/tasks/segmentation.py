"""Pixels: a class for each, scored by intersection over union."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from psaq.errors import PsaqError
from psaq.images.masks import MaskTruth
from psaq.models.calling import named_parts
from psaq.tasks.dense import DenseTask, Record, Size, sqnr_of
from psaq.tasks.task import figures, known_figures

_LABELS = {
    "miou": ("mIoU", ".2f", " %"),
    "pixel_accuracy": ("pixel accuracy", ".2f", " %"),
    "agreement": ("agreement", ".2f", " % of pixels"),
    "logit_sqnr": ("logit SQNR", ".1f", " dB"),
}


@dataclass(frozen=True)
class SegmentationReport:
    """How a segmenter did on pictures with masks, and how it compares with a reference."""

    miou: float
    """Intersection over union of each class over all pictures, the mean over the classes that are annotated or
    found, in percent; NaN without masks."""
    pixel_accuracy: float
    """Pixels whose class is right, of those that are not void, in percent; NaN without masks."""
    n: int
    """Number of pictures."""
    agreement: float | None = None
    """Pixels to which the reference gives the same class, void ones among them, in percent; None without one."""
    logit_sqnr: float | None = None
    """Signal to quantisation noise over all that the model answers, in dB; inf where equal."""
    reference: "SegmentationReport | None" = field(default=None, repr=False)
    """How the reference itself did."""

    @property
    def headline(self) -> tuple[str, float]:
        """The one figure that stands for all, in percent, and what it is called."""
        return "mIoU", self.miou

    def as_dict(self) -> dict[str, Any]:
        """The figures by name, for JSON and CSV; None for what there is not."""
        return figures(self)

    def __str__(self) -> str:
        return f"{known_figures(self, _LABELS) or 'nothing to score'} ({self.n} pictures)"


class Segmentation(DenseTask):
    """A class for each pixel of the picture: the logits resized to it, bilinearly, and the likeliest taken."""

    name = "segmentation"
    truth = MaskTruth

    def answers(self, model: nn.Module, output: Any, sizes: Sequence[Size]) -> list[Any]:
        """(classes of the pixels, number of classes) of each picture."""
        logits = pixel_logits(output)
        if logits is None:
            raise PsaqError(
                f"{type(model).__name__}: its output holds no logits (images, classes, height, width); "
                "name another task, or a segmenter"
            )
        return [(_likeliest(each, size), logits.shape[1]) for each, size in zip(logits, sizes, strict=True)]

    def record(self, truth: MaskTruth | None, answer: Any, reference: Any) -> Record:
        """Confusion matrices, and the pixels on which both agree."""
        found, classes = answer
        record: Record = {"n": 1}
        if truth is not None:
            record["confusion"] = confusion(found, truth, classes).tolist()
        if reference is not None:
            record["pixels"], record["same"] = found.numel(), int((found == reference[0]).sum())
            if truth is not None:
                record["reference"] = confusion(reference[0], truth, reference[1]).tolist()
        return record

    def merged(self, records: list[Record]) -> list[Record]:
        """A batch's sums: the matrices of many classes are large."""
        return [{name: _summed([record[name] for record in records]) for name in records[0]}]

    def report(self, records: list[Record], dataset: Any) -> SegmentationReport:
        """Both models' scores; only the first is compared."""
        n = sum(record["n"] for record in records)
        if not all("same" in record for record in records):
            return SegmentationReport(*_scores(records, "confusion"), n)
        same = sum(record["same"] for record in records) / sum(record["pixels"] for record in records)
        reference = SegmentationReport(*_scores(records, "reference"), n)
        return SegmentationReport(*_scores(records, "confusion"), n, 100 * same, sqnr_of(records), reference)


def pixel_logits(output: Any) -> Float[Tensor, "images classes height width"] | None:
    """What a segmenter says of each pixel: its ``logits``, torchvision's ``out``, or the classes of masks (Mask2Former)
    weighed by their masks; the output itself, where it is such a tensor."""
    if parts := named_parts(output):
        masks, classes = parts.get("masks_queries_logits"), parts.get("class_queries_logits")
        if masks is not None and classes is not None:
            likely = classes.softmax(-1)[..., :-1]  # the last is "no mask"
            return torch.einsum("bqc,bqhw->bchw", likely, masks.sigmoid())
        output = parts.get("logits", parts.get("out"))
    elif isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) and output.ndim == 4 else None


def pixel_probabilities(output: Any) -> Float[Tensor, "images classes height width"] | None:
    """The same as probabilities of each pixel's classes."""
    logits = pixel_logits(output)
    if logits is None:
        return None
    weighed = named_parts(output).get("masks_queries_logits") is not None  # so they are no logits
    logits = logits.float()
    if not weighed:
        return logits.softmax(1)
    # No query may have a mask at a pixel.
    return logits / logits.sum(1, keepdim=True).clamp(min=torch.finfo(logits.dtype).tiny)


def confusion(found: Int[Tensor, "height width"], truth: MaskTruth, classes: int) -> Int[Tensor, "classes classes"]:
    """Pixels by true class (rows) and found class (columns), void ones left out. Raises PsaqError for a true class that
    the model does not know."""
    counted = truth.mask != truth.ignore
    true = truth.mask[counted].long()
    if len(true) and int(true.max()) >= classes:
        raise PsaqError(
            f"{truth.file}: holds class {int(true.max())}, the model knows 0 to {classes - 1}; "
            f"name the value that means void with ignore (now {truth.ignore}), or each class's with labels"
        )
    return torch.bincount(classes * true + found[counted], minlength=classes**2).reshape(classes, classes)


def _summed(values: list[Any]) -> Any:
    """The sum of numbers, or of matrices as lists."""
    return np.sum([np.array(value) for value in values], axis=0).tolist()


def _likeliest(logits: Float[Tensor, "classes h w"], size: Size) -> Int[Tensor, "height width"]:
    resized = F.interpolate(logits[None].float(), size, mode="bilinear", align_corners=False)
    return resized[0].argmax(0).cpu()


def _scores(records: Sequence[Record], name: str) -> tuple[float, float]:
    """mIoU and pixel accuracy in percent; NaN where nothing is known of the pictures."""
    if name not in records[0]:
        return math.nan, math.nan
    counts = torch.tensor(_summed([record[name] for record in records])).double()
    if not counts.sum():
        return math.nan, math.nan  # every pixel is void
    right, union = counts.diag(), counts.sum(0) + counts.sum(1) - counts.diag()
    there = union > 0
    return 100 * (right[there] / union[there]).mean().item(), 100 * (right.sum() / counts.sum()).item()

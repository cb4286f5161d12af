"""Boxes, and masks where a model gives them: scored by COCO's average precision."""

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchvision.ops import box_convert, box_iou

from psaq.errors import PsaqError
from psaq.images.coco import CocoAnnotations, CocoTruth, pycocotools
from psaq.models.calling import named_parts
from psaq.tasks.dense import DenseTask, Record, Size, sqnr_of
from psaq.tasks.task import figures, known_figures

CONFIDENT = 0.5
"""Boxes of at least this score count for agreement."""
SAME_PLACE = 0.5
"""Intersection over union from which two boxes are of the same thing."""
_LABELS = {
    "ap": ("box AP", ".2f", ""),
    "ap50": ("AP50", ".2f", ""),
    "ap75": ("AP75", ".2f", ""),
    "ap_small": ("small", ".2f", ""),
    "ap_medium": ("medium", ".2f", ""),
    "ap_large": ("large", ".2f", ""),
    "mask_ap": ("mask AP", ".2f", ""),
    "mask_ap50": ("mask AP50", ".2f", ""),
    "mask_ap75": ("mask AP75", ".2f", ""),
    "agreement": ("agreement", ".1f", " % of boxes"),
    "logit_sqnr": ("SQNR", ".1f", " dB"),
}


@dataclass(frozen=True)
class DetectionReport:
    """How a detector did on pictures with boxes, and how it compares with a reference.

    Average precisions are COCO's, in percent: the mean over its ten thresholds of overlap, at 50 % and at 75 %, and by
    the size of the object (up to 32², up to 96², larger). NaN without annotations, or where there is no such object.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    n: int
    """Number of pictures."""
    mask_ap: float | None = None
    """Of masks; None where the model or the annotations have none."""
    mask_ap50: float | None = None
    mask_ap75: float | None = None
    agreement: float | None = None
    """Boxes of both models that have a partner in the other's answer (same class, overlap of at least one half), of
    all that either is confident of, in percent; None without a reference."""
    logit_sqnr: float | None = None
    """Signal to quantisation noise over what is answered before anything is chosen, in dB: torchvision's class and box
    maps, of a first stage where there are two; all tensors of transformers' outputs. Inf where equal, None where a
    detector takes its images one by one."""
    reference: "DetectionReport | None" = field(default=None, repr=False)
    """How the reference itself did."""

    @property
    def headline(self) -> tuple[str, float]:
        """The one figure that stands for all, in percent, and what it is called."""
        return "box AP", self.ap

    def as_dict(self) -> dict[str, Any]:
        """The figures by name, for JSON and CSV; None for what there is not."""
        return figures(self)

    def __str__(self) -> str:
        return f"{known_figures(self, _LABELS) or 'nothing to score'} ({self.n} pictures)"


@dataclass(frozen=True)
class Boxes:
    """What a detector finds in one picture, in the picture's own pixels."""

    boxes: Float[Tensor, "boxes 4"]
    """Left, top, right, bottom."""
    scores: Float[Tensor, "boxes"]
    labels: Int[Tensor, "boxes"]
    masks: Bool[Tensor, "boxes height width"] | None = None

    def confident(self) -> "Boxes":
        """Those that count for agreement."""
        kept = self.scores >= CONFIDENT
        masks = None if self.masks is None else self.masks[kept]
        return Boxes(self.boxes[kept], self.scores[kept], self.labels[kept], masks)


class Detection(DenseTask):
    """Boxes with a class and a score: torchvision's dictionaries, or transformers' ``pred_boxes``."""

    name = "detection"
    truth = CocoTruth

    def answers(self, model: nn.Module, output: Any, sizes: Sequence[Size]) -> list[Boxes]:
        """The boxes found in each picture, in its own pixels."""
        found = found_boxes(model, output, sizes)
        if found is None:
            raise PsaqError(
                f"{type(model).__name__}: its output holds no boxes (a dictionary of boxes, scores and labels for each "
                "picture, or logits and pred_boxes); name another task, or a detector"
            )
        return found

    def record(self, truth: CocoTruth | None, answer: Boxes, reference: Boxes | None) -> Record:
        """Boxes as COCO writes them, and the partners of both models."""
        record: Record = {}
        if truth is not None:
            record["found"] = coco_results(answer, truth)
        if reference is not None:
            own, others = answer.confident(), reference.confident()
            record["partners"] = len(partners(own, others))
            record["boxes"] = len(own.boxes) + len(others.boxes)
            if truth is not None:
                record["reference"] = coco_results(reference, truth)
        return record

    def report(self, records: list[Record], dataset: Any) -> DetectionReport:
        """Both models' scores; only the first is compared."""
        alone = not all("boxes" in record for record in records)
        own = _scored(records, "found", dataset, checked=alone)
        if alone:
            return own
        boxes = sum(record["boxes"] for record in records)
        partnered = 2 * sum(record["partners"] for record in records)
        return replace(
            own,
            agreement=100 * partnered / boxes if boxes else 100.0,
            logit_sqnr=sqnr_of(records),
            reference=_scored(records, "reference", dataset, checked=True),
        )


def found_boxes(model: nn.Module, output: Any, sizes: Sequence[Size]) -> list[Boxes] | None:
    """The boxes in an output, picture by picture; None where it holds none. ``sizes`` are (height, width)."""
    logits, boxes = (named_parts(output).get(name) for name in ("logits", "pred_boxes"))
    if logits is not None and boxes is not None:
        return _queried(model, logits, boxes, sizes)
    if isinstance(output, list | tuple) and all(isinstance(each, Mapping) and "boxes" in each for each in output):
        return [_torchvision(each) for each in output]
    return None


def partners(a: Boxes, b: Boxes) -> list[tuple[int, int]]:
    """Pairs of boxes of the same class and place, each box in one at most, those that overlap most first."""
    overlap = box_iou(a.boxes, b.boxes).nan_to_num(0)  # boxes of no area lie nowhere
    overlap = overlap.where(a.labels[:, None] == b.labels, 0)
    pairs, order = [], overlap.flatten().argsort(descending=True, stable=True)
    taken_a, taken_b = set[int](), set[int]()
    for index in order.tolist():
        row, column = divmod(index, overlap.shape[1])
        if overlap[row, column] < SAME_PLACE:
            break
        if row not in taken_a and column not in taken_b:
            taken_a.add(row)
            taken_b.add(column)
            pairs.append((row, column))
    return pairs


def coco_results(found: Boxes, truth: CocoTruth) -> list[dict[str, Any]]:
    """Boxes as COCO's own result files have them: left, top, width, height; masks as run lengths."""
    boxes = box_convert(found.boxes, "xyxy", "xywh").tolist()
    masks = [None] * len(boxes) if found.masks is None else _run_lengths(found.masks)
    return [
        {"image_id": truth.image_id, "category_id": truth.category(label), "bbox": box, "score": score}
        | ({} if mask is None else {"segmentation": mask})
        for box, score, label, mask in zip(boxes, found.scores.tolist(), found.labels.tolist(), masks, strict=True)
    ]


def _torchvision(found: Mapping[str, Tensor]) -> Boxes:
    masks = found.get("masks")
    masks = None if masks is None else masks.detach().cpu()[:, 0] > 0.5
    boxes, scores, labels = (found[name].detach().cpu() for name in ("boxes", "scores", "labels"))
    return Boxes(boxes.float(), scores.float(), labels, masks)


def _queried(
    model: nn.Module,
    logits: Float[Tensor, "images queries classes"],
    boxes: Float[Tensor, "images queries 4"],
    sizes: Sequence[Size],
) -> list[Boxes]:
    """One box a query, its centre and size in shares of the picture (Carion et al., 2020). Where the last class is that
    of nothing, the classes compete; else each is judged alone, and a query still gives the likeliest only, where
    transformers' own post-processing of such models takes the best of all queries and classes."""
    with_nothing = logits.shape[-1] == _labels_of(model) + 1
    likely = logits.float().softmax(-1)[..., :-1] if with_nothing else logits.float().sigmoid()
    scores, labels = likely.detach().cpu().max(-1)
    corners = box_convert(boxes.detach().cpu().float(), "cxcywh", "xyxy")
    scales = torch.tensor([(width, height, width, height) for height, width in sizes])
    return [Boxes(*each) for each in zip(corners * scales[:, None], scores, labels, strict=True)]


def _labels_of(model: nn.Module) -> int:
    config: Any = getattr(getattr(model, "psaq_body", model), "config", None)
    return int(getattr(config, "num_labels", -1))


def _run_lengths(masks: Bool[Tensor, "boxes height width"]) -> list[dict[str, Any]]:
    encode = pycocotools().mask.encode
    encoded = [encode(mask.numpy().astype("uint8", order="F")) for mask in masks]
    return [{"size": each["size"], "counts": each["counts"].decode("ascii")} for each in encoded]


def _scored(records: Sequence[Record], name: str, dataset: Any, checked: bool) -> DetectionReport:
    """A model's own scores; NaN where nothing is known of the pictures."""
    if name not in records[0]:
        return DetectionReport(math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, len(records))
    results = [result for record in records for result in record[name]]
    if checked:  # what quantisation leaves of a model may find anything
        dataset.check_categories({result["category_id"] for result in results})
    ap, ap50, ap75, small, medium, large = average_precisions(dataset, results, "bbox")
    report = DetectionReport(ap, ap50, ap75, small, medium, large, len(records))
    if not (dataset.has_masks and results and all("segmentation" in result for result in results)):
        return report
    mask_ap, mask_ap50, mask_ap75, *_ = average_precisions(dataset, results, "segm")
    return replace(report, mask_ap=mask_ap, mask_ap50=mask_ap50, mask_ap75=mask_ap75)


def average_precisions(dataset: CocoAnnotations, results: list[dict[str, Any]], kind: str) -> list[float]:
    """COCO's AP, AP50, AP75, and AP of small, medium and large objects, in percent; NaN where there is no object."""
    if not results:
        return [0.0 if there else math.nan for there in dataset.sizes_there()]
    tools = pycocotools()
    with contextlib.redirect_stdout(io.StringIO()):  # it reports to whoever reads the screen
        truth = dataset.coco()  # and what it is given it writes outlines of boxes into
        evaluation = tools.cocoeval.COCOeval(truth, truth.loadRes([dict(result) for result in results]), kind)
        evaluation.params.imgIds = dataset.image_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [math.nan if value < 0 else 100 * float(value) for value in evaluation.stats[:6]]

"""What quantisation costs: a model's answers scored by its task, and compared with the full-precision model's."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset

from psaq.choices import TaskName
from psaq.images.batches import batches_for
from psaq.images.synthetic import SyntheticImages
from psaq.tasks.classification import Logits, Report
from psaq.tasks.detection import DetectionReport
from psaq.tasks.find import task_of
from psaq.tasks.reading import Reading, Unlabelled
from psaq.tasks.segmentation import SegmentationReport


def evaluate(
    model: nn.Module,
    dataset: Dataset[Any] | Float[Tensor, "images channels height width"] | SyntheticImages,
    reference: nn.Module | Logits | None = None,
    *,
    task: TaskName | None = None,
    batch_size: int = 32,
    workers: int = 0,
    progress: bool = False,
) -> Report | SegmentationReport | DetectionReport:
    """Run ``model`` over ``dataset`` and compare it with ``reference``.

    Args:
        dataset: of (image, class index) for a classifier (`psaq.imagenet`), of (image, what is known of it) for a
            segmenter (`psaq.segmentation`) or detector (`psaq.coco`); or images alone, of which nothing is known to be
            right about: agreement and SQNR are what is left.
        reference: the full-precision model, or of a classifier what `collect_logits` got from it on the same dataset.
        task: what the model is for; by default it is found from the model and its output.
        workers: processes that read images beside this one.
        progress: show a bar on standard error; by default nothing.

    Raises:
        PsaqError: an empty dataset, an unreadable image, a truth that is none of the model's, logits with NaN, or a
            task that the model's output or the dataset does not fit.
    """
    reading = Reading(batch_size, workers, progress)
    data: Any = dataset
    if isinstance(dataset, Tensor | SyntheticImages):
        data = Unlabelled(torch.cat([batch.cpu() for batch in batches_for(model, dataset, batch_size)]))
    return task_of(model, task).evaluate(model, data, reference, reading)  # type: ignore[return-value]

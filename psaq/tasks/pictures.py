"""What two models find in the same pictures, drawn beside each other."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from psaq.choices import TaskName
from psaq.errors import PsaqError
from psaq.images.whole import WholePicture
from psaq.models.answers import Answering
from psaq.models.borrowing import evaluating
from psaq.models.heads import label_names
from psaq.tasks.dense import DenseTask
from psaq.tasks.detection import Boxes, Detection, partners
from psaq.tasks.find import task_of
from psaq.tasks.segmentation import Segmentation
from psaq_plots import DrawnBoxes, Style, boxes_figure, pixels_figure


def draw_predictions(
    model: nn.Module,
    quantized: nn.Module,
    pictures: Sequence[Image.Image],
    names: Mapping[int, str] | None = None,
    task: TaskName | None = None,
    style: str | Style = "paper",
) -> Figure:
    """A figure with a row for each picture: what the model finds in it, and its quantised copy, differences marked.

    Args:
        names: what classes are called, by number; by default what the model says, or their numbers.

    Raises:
        PsaqError: a model of neither boxes nor pixels, or no picture.
    """
    found = task_of(model, task)
    if not isinstance(found, DenseTask):
        raise PsaqError(f"{type(model).__name__}: is for {found.name}; there are neither boxes nor pixels to draw")
    if not pictures:
        raise PsaqError("pictures: there are none; give at least one")
    preprocess = WholePicture(model)
    images = [preprocess(picture.convert("RGB")) for picture in pictures]
    answers = [_answers(found, each, images, pictures) for each in (model, quantized)]
    known = names or label_names(model)
    colours = [np.asarray(picture.convert("RGB")) for picture in pictures]
    if isinstance(found, Segmentation):
        pairs = [(one.numpy(), other.numpy()) for (one, _), (other, _) in zip(*answers, strict=True)]
        return pixels_figure(colours, pairs, _numbered(known, answers[0][0][1]), style=style)
    assert isinstance(found, Detection)
    drawn = [_drawn(one.confident(), other.confident()) for one, other in zip(*answers, strict=True)]
    most = max([0, *(int(index) for both in drawn for boxes in both for index in boxes.classes)])
    return boxes_figure(colours, drawn, _numbered(known, most + 1), style=style)


@torch.no_grad()
def _answers(
    task: DenseTask, model: nn.Module, images: Sequence[Float[Tensor, "c h w"]], pictures: Sequence[Image.Image]
) -> list:
    """One picture at a time: they may differ in size."""
    answering, sizes = Answering(model), [(picture.height, picture.width) for picture in pictures]
    with evaluating(model):
        return [task.answered(answering, [image], [size])[0].answer for image, size in zip(images, sizes, strict=True)]


def _drawn(one: Boxes, other: Boxes) -> tuple[DrawnBoxes, DrawnBoxes]:
    pairs = partners(one, other)
    found = ({row for row, _ in pairs}, {column for _, column in pairs})
    first, second = (
        DrawnBoxes(boxes.boxes.numpy(), boxes.labels.numpy(), [index in known for index in range(len(boxes.labels))])
        for boxes, known in zip((one, other), found, strict=True)
    )
    return first, second


def _numbered(names: Mapping[int, str], count: int) -> list[str]:
    return [names.get(index, str(index)) for index in range(count)]

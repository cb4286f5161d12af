"""The way through a data set of boxes or pixels: a batch at a time, of which only small records are kept."""

import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset

from psaq.distributed import gather_dealt, together
from psaq.errors import PsaqError
from psaq.models.answers import Answering
from psaq.models.borrowing import evaluating
from psaq.models.place import tensor_of
from psaq.progress import progress_bar
from psaq.tasks.decibels import decibels
from psaq.tasks.reading import Batches, Reading, Unlabelled, first_truth, read
from psaq.tasks.task import Task, TaskReport

Image = Float[Tensor, "channels height width"]
Size = tuple[int, int]
"""Height and width."""
Record = dict[str, Any]
"""What is kept of an image, in JSON's types."""
_MAKERS = {"MaskTruth": "segmentation", "CocoTruth": "coco"}


@dataclass(frozen=True)
class Answered:
    """What one model answers to one image, as its task reads it, and its numbers before anything is chosen."""

    answer: Any
    numbers: Float[Tensor, "numbers"]


class DenseTask(Task):
    """A task whose answers are too large to be kept."""

    def evaluate(self, model: nn.Module, dataset: Dataset[Any], reference: Any, reading: Reading) -> TaskReport:
        """The scores of the model and, where there is one, of the reference, and how they agree."""
        if reference is not None and not isinstance(reference, nn.Module):
            raise PsaqError(f"reference {type(reference).__name__}: for {self.name} it must be a torch.nn.Module")
        self._check_truth(dataset)
        return self.report(self._records(model, dataset, reference, reading), dataset)

    truth: ClassVar[type]
    """What a data set knows of a picture."""

    @abstractmethod
    def answers(self, model: nn.Module, output: Any, sizes: Sequence[Size]) -> list[Any]:
        """What an output says of each picture, in pixels of its own size. Raises PsaqError where it says nothing
        such."""

    @abstractmethod
    def record(self, truth: Any, answer: Any, reference: Any) -> Record:
        """What is kept of an image: of what is known of it (None where nothing is), and what both models answer (None
        without a reference)."""

    def merged(self, records: list[Record]) -> list[Record]:
        """A batch's records, made as small as the report allows."""
        return records

    @abstractmethod
    def report(self, records: list[Record], dataset: Any) -> TaskReport:
        """The scores on a whole data set."""

    def answered(self, model: Answering, images: Sequence[Image], sizes: Sequence[Size]) -> list[Answered]:
        """What a model answers to a batch of pictures of these sizes. Raises PsaqError for NaN or infinity in it."""
        like = tensor_of(model.model)
        output, numbers = model.with_output([image.to(like) for image in images])
        if not numbers.isfinite().all():
            raise PsaqError("the model's answers hold NaN or infinity; check its weights and the images")
        answers = self.answers(model.model, output, sizes)
        return [Answered(answer, row) for answer, row in zip(answers, numbers.cpu(), strict=True)]

    def _check_truth(self, dataset: Dataset[Any]) -> None:
        known = first_truth(dataset)
        if not isinstance(dataset, Unlabelled) and not isinstance(known, self.truth):
            raise PsaqError(
                f"dataset {type(dataset).__name__}: knows a {type(known).__name__} of each picture, the model is for "
                f"{self.name}; give what psaq.{_MAKERS[self.truth.__name__]} makes, or name another task"
            )

    @torch.no_grad()
    def _records(self, model: nn.Module, dataset: Dataset[Any], reference: Any, reading: Reading) -> list[Record]:
        models = [Answering(each) for each in (model, reference) if each is not None]
        batches, own = Batches.of(dataset, reading.batch_size), []
        bar = {"description": "Evaluating", "total": len(batches.own), "unit": "batch", "enabled": reading.progress}
        reader = read(dataset, batches, reading, pin=False, collate=_apart)
        held = evaluating(*(each.model for each in models))
        with held, together(), progress_bar(reader, **bar) as shown:  # type: ignore[arg-type]
            for images, truths in shown:
                known = [None] * len(images) if isinstance(dataset, Unlabelled) else truths
                sizes = [_size(*each) for each in zip(images, known, strict=True)]
                answered = [self.answered(each, images, sizes) for each in models]
                records = [self._compared(*each) for each in zip(known, *answered, strict=True)]
                own.append(_packed(self.merged(records)))
        return list(chain.from_iterable(map(_unpacked, gather_dealt(own, batches.total))))

    def _compared(self, truth: Any, model: Answered, reference: Answered | None = None) -> Record:
        record = self.record(truth, model.answer, None if reference is None else reference.answer)
        if reference is not None and model.numbers.numel() and reference.numbers.shape == model.numbers.shape:
            wanted = reference.numbers.double()
            record["signal"] = wanted.square().sum().item()
            record["noise"] = (wanted - model.numbers.double()).square().sum().item()
        return record


def sqnr_of(records: Sequence[Record]) -> float | None:
    """Signal to quantisation noise over all records, in dB; None where one holds none."""
    if not all("signal" in record for record in records):
        return None
    return decibels(sum(record["signal"] for record in records), sum(record["noise"] for record in records))


def _size(image: Image, truth: Any) -> Size:
    """Of the picture itself; of an image of which nothing is known its own."""
    height, width = image.shape[1:] if truth is None else truth.size
    return height, width


def _apart(items: list[tuple[Tensor, Any]]) -> tuple[list[Tensor], list[Any]]:
    """Pictures differ in size, and so does what is known of them."""
    return [image for image, _ in items], [truth for _, truth in items]


def _packed(records: list[Record]) -> Tensor:
    """As bytes, which travel between the ranks of a launch."""
    return torch.frombuffer(bytearray(json.dumps(records).encode()), dtype=torch.uint8)


def _unpacked(packed: Tensor) -> list[Record]:
    return json.loads(packed.numpy().tobytes())

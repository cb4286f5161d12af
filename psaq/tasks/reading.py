"""A data set read batch by batch, dealt out to the ranks of a launch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from psaq.distributed import own_share
from psaq.errors import PsaqError

_BATCHES_AHEAD = 4  # that each worker keeps ready


@dataclass(frozen=True)
class Reading:
    """How a data set is read.

    Raises:
        PsaqError: no image a batch, or fewer than no workers.
    """

    batch_size: int = 32
    """Images per batch."""
    workers: int = 0
    """Processes that read images beside this one."""
    progress: bool = False
    """Whether a bar shows how far it is."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.workers < 0:
            raise PsaqError(
                f"batch_size {self.batch_size}, workers {self.workers}: need at least 1 image a batch and 0 workers"
            )


class Unlabelled(Dataset[tuple[Tensor, int]]):
    """Images of which nothing else is known."""

    def __init__(self, images: Float[Tensor, "images channels height width"]):
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "channels height width"], int]:
        return self._images[index], 0


class WithoutTruth(Dataset[tuple[Tensor, int]]):
    """A data set's images alone."""

    def __init__(self, dataset: Dataset[Any]):
        self._dataset = dataset

    def __len__(self) -> int:
        return _length(self._dataset)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "channels height width"], int]:
        return self._dataset[index][0], 0


@dataclass(frozen=True)
class Batches:
    """A data set's batches: how many there are, and those of this rank, each the indices of its images."""

    total: int
    own: Sequence[list[int]]

    @classmethod
    def of(cls, dataset: Dataset[Any], batch_size: int) -> "Batches":
        """Raises PsaqError for an empty data set, or one that is read in order only."""
        images = _length(dataset)
        every = [list(range(start, min(start + batch_size, images))) for start in range(0, images, batch_size)]
        return cls(len(every), own_share(every))


def read(
    dataset: Dataset[Any],
    batches: Batches,
    reading: Reading,
    pin: bool,
    collate: Callable[[list[Any]], Any] | None = None,
) -> Iterator[Any]:
    """This rank's batches. Raises PsaqError, as the data set does, for an item that cannot be read."""
    try:
        yield from DataLoader(
            dataset,
            batch_sampler=batches.own,
            num_workers=reading.workers,
            pin_memory=pin,
            prefetch_factor=_BATCHES_AHEAD if reading.workers else None,
            collate_fn=collate,
        )
    except PsaqError as error:
        # A worker process wraps the message in its own traceback; the last line is ours.
        raise PsaqError(str(error).strip().rpartition("PsaqError: ")[-1]) from None


def first_truth(dataset: Dataset[Any]) -> Any:
    """What is known of the first image. Raises PsaqError as `Batches.of`."""
    _length(dataset)
    return dataset[0][1]


def _length(dataset: Any) -> int:
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise PsaqError(
            f"dataset {type(dataset).__name__}: must be a map-style Dataset of (image, what is known of it), "
            "or images alone"
        )
    if len(dataset) == 0:
        raise PsaqError("the dataset is empty: evaluation needs at least one image")
    if not isinstance(dataset[0], tuple | list) or len(dataset[0]) != 2:
        raise PsaqError("dataset: its items must be (image, what is known of it); give images alone as one tensor")
    return len(dataset)

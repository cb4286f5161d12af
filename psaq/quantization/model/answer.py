"""What a converted model's answer is judged by, where something must leave it as it is."""

from collections.abc import Iterable

from torch import Tensor, nn

from psaq.models.answers import Answering
from psaq.models.calling import run, takes, tensors_of
from psaq.models.operations import tensors_in
from psaq.quantization.model.conversion import structure


def answer(qmodel: nn.Module, images: Tensor) -> list[Tensor]:
    """The floating-point tensors of its output. Where these hold no number, what its heads emit, of a detector that has
    found nothing; else tensors of whole numbers, of a segmenter that answers with classes."""
    has_heads = takes(qmodel) == "list" and structure(qmodel).heads
    output, emitted = Answering(qmodel).with_parts(images) if has_heads else (run(qmodel, images), [])
    floats = tensors_of(output)
    if holds_numbers(floats):
        return floats
    return emitted or list(tensors_in(output))


def holds_numbers(tensors: Iterable[Tensor]) -> bool:
    """Whether there is anything to compare: two answers without a number are alike whatever was done."""
    return any(tensor.numel() for tensor in tensors)

"""What of a model goes into an ONNX graph: all of it, or a part, with tensors in and tensors out."""

from itertools import chain
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.models.calling import logits_of, run, takes, tensors_of

Images = Float[Tensor, "images channels height width"]

MOST_BYTES = 2**31 - 2**24
"""Of tensors in a file: protobuf has 2 GiB, of which the graph needs a little."""


class OnnxPart(nn.Module):
    """Images to logits, or to every tensor of an output that has none."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Images) -> Any:
        output = run(self.model, images)
        logits = logits_of(output)
        if logits is not None:
            return logits
        tensors = tensors_of(output)
        return tensors[0] if len(tensors) == 1 else tuple(tensors)


def part_of(model: nn.Module, part: str | None) -> nn.Module:
    """The part of a model that is to be exported.

    Raises:
        PsaqError: there is no such part, or the model as a whole chooses as it goes what it gives.
    """
    if part is None:
        if takes(model) == "list":
            raise PsaqError(
                f"{type(model).__name__}: takes a list and chooses as it goes what it gives, which no ONNX graph "
                f"holds; name a part that takes a batch of images: {_parts(model)}"
            )
        return model
    try:
        return model.get_submodule(part)
    except AttributeError as error:
        raise PsaqError(
            f"part {part!r}: {type(model).__name__} has none of that name; it has {_parts(model)}"
        ) from error


def fits(tensors: int) -> bool:
    """Whether an ONNX file can hold tensors of so many bytes."""
    return tensors <= MOST_BYTES


def check_fits(part: nn.Module) -> None:
    """Raises PsaqError where the part's tensors, as they are, are more than an ONNX file can hold."""
    size = sum(tensor.nbytes for tensor in chain(part.parameters(), part.buffers()))
    if not fits(size):
        raise PsaqError(
            f"{type(part).__name__}: its tensors take {size / 2**30:.1f} GiB in the file, and an ONNX file holds 2; "
            f"leave less in float, or name a part: {_parts(part)}"
        )


def taken_by(part: nn.Module, model: nn.Module, images: Images) -> Tensor:
    """What a part of a model, or all of it, is called with where the model is given ``images``. Raises PsaqError where
    that is no batch of images."""
    if part is model:
        return images
    seen: list[Any] = []
    handle = part.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
    try:
        run(model, images)
    finally:
        handle.remove()
    if not seen or not isinstance(seen[0], Tensor) or len(seen) > 1:
        raise PsaqError(f"{type(part).__name__}: is not called with one tensor; name a part that is: {_parts(model)}")
    return seen[0]


def refused(model: nn.Module, error: Exception) -> PsaqError:
    """What to say of a model that the exporter does not take."""
    reason = " ".join(str(error).split())[:200]
    return PsaqError(
        f"{type(model).__name__}: torch cannot export it ({reason}); name a part that takes a batch of images: "
        f"{_parts(model)}"
    )


def _parts(model: nn.Module) -> str:
    return ", ".join(name for name, child in model.named_children() if any(True for _ in child.parameters()))

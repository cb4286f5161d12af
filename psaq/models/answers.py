"""What a model answers, as one row of numbers for each image: logits, or whatever it gives in their place."""

from itertools import takewhile
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.models.calling import logits_of, run, takes, tensors_of
from psaq.models.heads import classes_or_none, says_nothing_of_classes
from psaq.models.trace import IMAGE, NORMS, Call, Trace, trace

Answers = Float[Tensor, "images numbers"]
Images = Float[Tensor, "images channels height width"] | list[Float[Tensor, "channels height width"]]


class Answering:
    """A model whose answers can be compared image by image.

    A classifier answers with its logits, any other model with all numbers of its output. What chooses as it goes (a
    detector, its boxes) gives another number of them every time: there the layers behind the choice answer.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.has_classes = classes_or_none(model) is not None or says_nothing_of_classes(model)
        """Whether answers are logits; of a model that says nothing of classes, once it has answered with such."""
        self._body = getattr(model, "psaq_body", model)
        self._heads: list[str] | None = None

    def __call__(self, images: Float[Tensor, "images channels height width"]) -> Answers:
        """Raises PsaqError where the output holds no number that belongs to one image."""
        numbers = self.with_output(images)[1]
        if not numbers.numel():
            raise PsaqError(f"{type(self.model).__name__}: none of its heads emits numbers for each image")
        return numbers

    def with_output(self, images: Images) -> tuple[Any, Answers]:
        """The model's own output, and its numbers, none where its heads run for one image after the other. Raises
        PsaqError as `__call__`."""
        output, parts = self.with_parts(images)
        if len(parts) == 1 and parts[0].ndim == 2:
            return output, parts[0]
        rows = [part.reshape(len(part), -1).float() for part in parts]
        return output, torch.cat(rows, 1) if rows else torch.zeros(len(images), 0)

    def with_parts(self, images: Images) -> tuple[Any, list[Tensor]]:
        """The model's own output, and the tensors that its answer is made of, as it shapes them, each with a row for
        each image. Raises PsaqError as `__call__`."""
        if takes(self.model) == "list":
            return self._of_heads(images)
        output = run(self.model, images)
        return output, self.parts_of(output, len(images))

    def parts_of(self, output: Any, images: int) -> list[Tensor]:
        """The tensors in an output that hold a row for each of so many images. Raises PsaqError where none does."""
        logits = logits_of(output)
        if logits is not None:
            return [logits]
        self.has_classes = False
        parts = [tensor for tensor in tensors_of(output) if tensor.ndim and len(tensor) == images]
        if not parts:
            raise PsaqError(f"{type(self.model).__name__}: its output holds no tensor with a row for each image")
        return parts

    def _of_heads(self, images: Images) -> tuple[Any, list[Tensor]]:
        if self._heads is None:
            self._heads = _heads(self._body, images[0][None])
        emitted: list[Tensor] = []
        handles = [
            self._body.get_submodule(name).register_forward_hook(lambda _, __, output: emitted.append(output))
            for name in self._heads
        ]
        try:
            output = run(self.model, images)
        finally:
            for handle in handles:
                handle.remove()
        # What looks at proposals, as a second stage does, has rows for those, as many as the first has chosen.
        return output, list(takewhile(lambda each: len(each) == len(images), emitted))


def head_layers(seen: Trace) -> list[str]:
    """The layers whose outputs the model's output is made of, with neither another layer nor a norm behind them."""
    found = [index for source in seen.outputs for index in seen.reached(source, _ends_a_head)]
    calls = (seen.calls[index] for index in found if index != IMAGE)
    return list(dict.fromkeys(name for call in calls if call.kind == "layer" and (name := _layer(call))))


def _heads(model: nn.Module, images: Tensor) -> list[str]:
    known = getattr(model, "psaq_structure", None)
    names = head_layers(trace(model, images)) if known is None else list(known.heads)
    if not names:
        raise PsaqError(f"{type(model).__name__}: its output does not come from a linear or convolution layer")
    return names


def _layer(call: Call) -> str | None:
    weight = call.sources[1]
    return weight.removesuffix(".weight") if isinstance(weight, str) and weight.endswith(".weight") else None


def _ends_a_head(call: Call) -> bool:
    return call.kind in ("layer", "product") or call.name in NORMS

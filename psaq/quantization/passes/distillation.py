"""Training a quantised model for a moment, so that it answers as it did in full precision.

Distillation from the model into its quantised self (PSAQ-ViT V2: Li et al. 2023; features: Romero et al. 2015), through
the quantisers by straight-through gradients. Weights move between levels, steps and ranges, biases and LayerNorms
make up for what is left. Block by block (`reconstruction`) each error is judged where it arises; here by what it does
to the answer.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from psaq.models.answers import Answering
from psaq.progress import progress_bar
from psaq.quantization.model.walk import blocks
from psaq.quantization.passes.training import trained

Images = Float[Tensor, "images 3 height width"]
Logits = Float[Tensor, "images classes"]

_IMAGES = 8  # per step
_SHIFT = 1 / 15  # of the image's side, at most: as far as synthesis moves its images


def distil(qmodel: nn.Module, reference: nn.Module, images: Images, steps: int, progress: bool = False) -> None:
    """Train ``qmodel`` to emit, in every block and at the end, what ``reference`` emits; weights end on the grid.

    Where its answers to ``images`` have not come closer by that, it is left as it was.

    Args:
        qmodel: quantised at every point that it shall have.
        reference: the same model in full precision.
        images: what both are shown, shifted and flipped anew at every step.
        steps: of Adam, the rate falling to zero.

    Raises:
        PsaqError: the loss became NaN or infinite.
    """
    before, error = copy.deepcopy(qmodel.state_dict()), answer_error(qmodel, reference, images)
    _train(qmodel, reference, images, steps, progress)
    if not answer_error(qmodel, reference, images) < error:
        qmodel.load_state_dict(before)


@torch.no_grad()
def answer_error(qmodel: nn.Module, reference: nn.Module, images: Images) -> float:
    """The mean of `answer_loss` over the images."""
    parts = images.split(_IMAGES)
    student, teacher = Answering(qmodel), Answering(reference)
    losses = [answer_loss(student(part), teacher(part), student.has_classes) * len(part) for part in parts]
    return float(torch.stack(losses).sum()) / len(images)


def _train(qmodel: nn.Module, reference: nn.Module, images: Images, steps: int, progress: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    student, teacher = Answering(qmodel), Answering(reference)
    chosen = _draws(len(images), draw)
    names = blocks(qmodel, images[:1]).names
    emitted, wanted = _Emitted(qmodel, names), _Emitted(reference, names)
    with emitted.watched(), wanted.watched(), trained(qmodel, steps, "the whole model") as step:
        for _ in progress_bar(range(steps), description="Distilling", unit="step", enabled=progress):
            shown = _moved(images[[next(chosen) for _ in range(_IMAGES)]], draw)
            with torch.no_grad():
                answer = teacher(shown)
            loss = answer_loss(student(shown), answer, student.has_classes)
            step(loss + feature_loss(emitted.take(), wanted.take()))


def answer_loss(logits: Logits, wanted: Logits, has_classes: bool = True) -> Float[Tensor, ""]:
    """Kullback–Leibler divergence of the classes' probabilities, in nats, where there are any, and the answers'
    relative squared error."""
    if not has_classes:
        return relative_error(logits, wanted)
    divergence = F.kl_div(logits.log_softmax(1), wanted.log_softmax(1), reduction="batchmean", log_target=True)
    return divergence + relative_error(logits, wanted)


def feature_loss(features: list[Tensor], wanted: list[Tensor]) -> Float[Tensor, ""]:
    """The blocks' relative squared errors, their mean."""
    errors = [relative_error(*pair) for pair in zip(features, wanted, strict=True)]
    return torch.stack(errors).mean() if errors else torch.zeros(())


def relative_error(x: Float[Tensor, "..."], wanted: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Mean squared error over the variance of what is wanted."""
    return (x - wanted).square().mean() / wanted.var().clamp(min=torch.finfo(wanted.dtype).tiny)


class _Emitted:
    """What the blocks of a model emit, run by run."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]):
        self.modules = [model.get_submodule(name) for name in names]
        self.features: list[Tensor] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        handles = [
            module.register_forward_hook(lambda _, __, output: self.features.append(output)) for module in self.modules
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def take(self) -> list[Tensor]:
        features, self.features = self.features, []
        return features


def _draws(count: int, draw: torch.Generator) -> Iterator[int]:
    """Indices without end, each once before any comes again."""
    while True:
        yield from torch.randperm(count, generator=draw).tolist()


def _moved(images: Images, draw: torch.Generator) -> Images:
    """Shifted circularly, and flipped every other time."""
    shifts = [int((2 * torch.rand((), generator=draw) - 1) * _SHIFT * side) for side in images.shape[-2:]]
    images = images.roll(shifts, (2, 3))
    return images.flip(3) if torch.rand((), generator=draw) < 0.5 else images

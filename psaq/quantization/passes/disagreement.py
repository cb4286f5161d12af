"""How far a student's answers and features are from its teacher's, whatever the two answer with.

What PSAQ-ViT V2 (Li et al. 2023) has synthesised images maximise and the student minimise.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from psaq.choices import Measure, TaskName

_LEAST_ERROR = 1e-12
"""Below it float32 tells answers apart no more: 120 dB."""


def disagreement(
    answers: Sequence[Float[Tensor, "images ..."]],
    wanted: Sequence[Float[Tensor, "images ..."]],
    task: TaskName,
    measure: Measure = "divergence",
) -> Float[Tensor, ""]:
    """Between the parts of two models' answers (`Answering.with_parts`): a classifier's logits, a segmenter's maps, a
    detector's raw classes and boxes before any is chosen, features.

    By divergence it is the mean of the parts' relative squared errors, and of classes, an image's or each pixel's, the
    Kullback–Leibler divergence in nats beside it; by distance the mean absolute difference of all numbers.
    """
    pairs = _pairs(answers, wanted)
    if measure == "distance":
        return torch.cat([(one - other).abs().flatten() for one, other in pairs]).mean()
    error = torch.stack([relative_error(*pair) for pair in pairs]).mean()
    return error + divergence(*pairs[0]) if _tells_classes(wanted[0], task) else error


def divergence(
    logits: Float[Tensor, "images classes ..."], wanted: Float[Tensor, "images classes ..."]
) -> Float[Tensor, ""]:
    """Kullback–Leibler divergence of the classes' probabilities, in nats, the mean over images and pixels."""
    each = F.kl_div(logits.log_softmax(1), wanted.log_softmax(1), reduction="none", log_target=True)
    return each.sum(1).mean()


def feature_disagreement(features: Sequence[Tensor], wanted: Sequence[Tensor]) -> Float[Tensor, ""]:
    """The layers' relative squared errors, their mean; zero of no layers."""
    errors = [relative_error(*pair) for pair in _pairs(features, wanted)]
    return torch.stack(errors).mean() if errors else torch.zeros(())


def image_sqnr(
    answers: Sequence[Float[Tensor, "images ..."]], wanted: Sequence[Float[Tensor, "images ..."]]
) -> Float[Tensor, " images"]:
    """How far each image's answer stands above its own error, the mean of its parts', in dB."""
    errors = torch.stack([_squared_errors(x, y) / _variance(y) for x, y in _pairs(answers, wanted)]).mean(dim=0)
    return -10 * errors.clamp(min=_LEAST_ERROR).log10()


def relative_error(x: Float[Tensor, "..."], wanted: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Mean squared error over the variance of what is wanted."""
    return (x - wanted).square().mean() / _variance(wanted)


def _squared_errors(x: Float[Tensor, "images ..."], wanted: Float[Tensor, "images ..."]) -> Float[Tensor, " images"]:
    return (x - wanted).square().flatten(1).mean(dim=1)


def _pairs(ones: Sequence[Tensor], others: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """In float32 at least: in half precision, as autocast leaves answers, squares of small errors would be lost."""
    return [(_in_full(one), _in_full(other)) for one, other in zip(ones, others, strict=True)]


def _in_full(answer: Tensor) -> Tensor:
    return answer.to(torch.promote_types(answer.dtype, torch.float32))


def _variance(wanted: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    return wanted.var().clamp(min=torch.finfo(wanted.dtype).tiny)


def _tells_classes(answer: Tensor, task: TaskName) -> bool:
    """Whether a model's first answer has classes in its second axis: queries and masks (Mask2Former) have not."""
    return answer.ndim == {"classification": 2, "segmentation": 4}.get(task)

"""How far two sets of logits are apart."""

from statistics import median

from torch import Tensor

from psaq.tasks.classification import logit_sqnr


def usual_sqnr(logits: Tensor, reference: Tensor) -> float:
    """The median image's SQNR in dB: an activation that rounds to the next level, which moves an image's logits now
    and then, does not count; what is wrong everywhere does."""
    return median(logit_sqnr(*pair) for pair in zip(logits, reference, strict=True))

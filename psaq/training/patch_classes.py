"""The second training loss: every patch tells the object it shows from the background."""

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

GRID = 8
"""Patches along one side of the last feature map, of both bundled models."""

PatchLogits = Float[Tensor, "images 64 choices"]

# Background patches outnumber the object's; they are needed, but need not be heard as loudly.
_BACKGROUND_WEIGHT = 0.1


class PatchClassifier(nn.Module):
    """A linear layer on the last patch features: one logit per class, and one for the background.

    Without it a small transformer stays at chance for most of its training, because one label per image says
    nothing about where to look. It is thrown away afterwards. (Token labelling: Jiang et al., All Tokens Matter,
    NeurIPS 2021.)
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.linear = nn.Linear(channels, classes + 1)

    def forward(self, features: Float[Tensor, "images ..."]) -> PatchLogits:
        """From ``forward_features`` of a ViT (images, 1 + 64, channels) or a Swin (images, 8, 8, channels)."""
        patches = features[:, 1:] if features.ndim == 3 else features.flatten(1, 2)
        return self.linear(patches)

    def loss(
        self, logits: PatchLogits, coverage: Float[Tensor, "images 8 8"], labels: Int[Tensor, "images"]
    ) -> Float[Tensor, ""]:
        """Cross-entropy to the share of every patch that shows the object, and the rest that does not."""
        covered = coverage.flatten(1)
        shares = F.one_hot(labels, self.classes + 1)[:, None] * covered[..., None]
        shares[..., self.classes] = 1 - covered
        entropy = -(shares * logits.log_softmax(dim=-1)).sum(dim=-1)
        weights = covered + _BACKGROUND_WEIGHT
        return (entropy * weights).sum() / weights.sum()

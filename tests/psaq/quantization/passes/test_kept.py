"""Changes that must leave the answer as it is: which are taken back, and what is said of them."""

import torch
from torch import Tensor, nn

from psaq.quantization import pipeline
from psaq.quantization.pipeline import left_out, quantize
from psaq.quantization.recipes import Recipe


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_streams_that_could_not_be_rotated_are_not_said_to_be_absent(vit: nn.Module, monkeypatch) -> None:
    monkeypatch.setattr(pipeline, "kept", lambda *_: False)
    missing = left_out(quantize(vit, images(), Recipe.accurate(8, 8, flat_copies=0, collages=0)))
    assert missing["rotated streams"] == missing["folded norms"] == "the answer would have changed"

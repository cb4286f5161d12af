"""Changes that must leave the answer as it is: which are taken back, and what is said of them."""

import copy
from dataclasses import replace

import pytest
import torch
from dense_makes import dense_model
from torch import Tensor, nn

from psaq.quantization import pipeline
from psaq.quantization.model.conversion import converted
from psaq.quantization.model.walk import blocks
from psaq.quantization.passes.kept import kept
from psaq.quantization.pipeline import left_out, quantize
from psaq.quantization.recipes import Recipe


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_streams_that_could_not_be_rotated_are_not_said_to_be_absent(vit: nn.Module, monkeypatch) -> None:
    monkeypatch.setattr(pipeline, "kept", lambda *_: False)
    missing = left_out(quantize(vit, images(), Recipe.accurate(8, 8, flat_copies=0, collages=0)))
    assert missing["rotated streams"] == missing["folded norms"] == "the answer would have changed"


class Classes(nn.Module):
    """A classifier that says no more than which class it is."""

    def __init__(self, vit: nn.Module):
        super().__init__()
        self.vit = vit

    def forward(self, images: Tensor) -> Tensor:
        return self.vit(images).argmax(1)


def finds_nothing() -> nn.Module:
    detector = dense_model("Swin FCOS")
    detector.score_thresh = 2.0
    return detector


@pytest.mark.parametrize("make", ["logits", "classes", "nothing found"])
@torch.no_grad()
def test_what_changes_an_answer_is_taken_back(make: str, vit: nn.Module) -> None:
    model, side = (finds_nothing(), 64) if make == "nothing found" else (vit if make == "logits" else Classes(vit), 32)
    shown = torch.rand(8, 3, side, side, generator=torch.Generator().manual_seed(1))
    qmodel, _ = converted(model, shown)
    before = copy.deepcopy(qmodel.state_dict())
    qkv = next(module for name, module in qmodel.named_modules() if name.endswith("qkv"))
    assert not kept(qmodel, shown, lambda: qkv.weight.normal_(0, 10, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in qmodel.state_dict().items())
    assert kept(qmodel, shown, lambda: None)


class Silent(nn.Module):
    """Takes a list of images and answers with nothing at all."""

    def __init__(self, vit: nn.Module):
        super().__init__()
        self.vit = vit

    def forward(self, images: list[Tensor]) -> list[Tensor]:
        return [logits[:0] for logits in self.vit(torch.stack(images))]


@torch.no_grad()
def test_an_answer_without_a_number_allows_no_change(vit: nn.Module) -> None:
    qmodel, _ = converted(Silent(vit), images())
    qmodel.psaq_structure = replace(qmodel.psaq_structure, heads=())
    assert not kept(qmodel, images(), lambda: qmodel.vit.head.weight.zero_())
    assert qmodel.vit.head.weight.any()
    assert blocks(qmodel, images()).in_a_row == 0

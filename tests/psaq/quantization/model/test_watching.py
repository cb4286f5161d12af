"""Calls of the framework that a model makes itself: what of them is quantised, however they are written."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psaq.quantization.model.points import all_points, role
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe
from psaq.tasks.classification import logit_sqnr

Call = Callable[[Tensor, Tensor, Tensor], Tensor]


class Calls(nn.Module):
    """Attention, and behind it one call with parameters of the model's own."""

    num_classes, image_size = 5, 32

    def __init__(self, call: Call):
        super().__init__()
        self.call = call
        self.embed, self.qkv = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, 48)
        self.proj, self.head = nn.Linear(16, 16), nn.Linear(16, 5)
        self.matrix, self.offset = nn.Parameter(torch.randn(16, 16)), nn.Parameter(torch.randn(16))

    def forward(self, images: Tensor) -> Tensor:
        q, k, v = self.qkv(self.embed(images).flatten(2).mT).chunk(3, -1)
        attended = self.proj(F.scaled_dot_product_attention(q, k, v))
        return self.head(self.call(attended, self.matrix, self.offset).mean(1))


def calling(call: Call) -> nn.Module:
    torch.manual_seed(0)
    return Calls(call).eval()


def images(seed: int = 1) -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


BARE: dict[str, Call] = {
    "linear": F.linear,
    "linear by name": lambda x, w, b: F.linear(bias=b, weight=w, input=x),
    "addmm": lambda x, w, b: torch.addmm(b, x.flatten(0, 1), w).view_as(x),
    "addmm by name": lambda x, w, b: torch.addmm(b, mat2=w, mat1=x.flatten(0, 1)).view_as(x),
    "a tensor's addmm": lambda x, w, b: b.addmm(x.flatten(0, 1), w, beta=0.5).view_as(x),
    "matmul by name": lambda x, w, b: torch.matmul(other=w, input=x) + b,
}


@pytest.mark.parametrize("way", BARE)
@torch.no_grad()
def test_a_bare_parameter_is_quantised_in_its_place(way: str) -> None:
    model = calling(BARE[way])
    qmodel = quantize(model, images(), Recipe.paper(8, 8))
    passed = {}
    for point in ("left", "bare_weight"):
        hook = lambda _, inputs, __, point=point: passed.update({point: inputs[0]})  # noqa: E731
        qmodel.get_submodule(point).register_forward_hook(hook)
    answer = qmodel(images())
    assert passed["bare_weight"] is qmodel.matrix
    assert passed["left"].numel() == 4 * 16 * 16
    assert logit_sqnr(answer, model(images())) > 20


@torch.no_grad()
def test_a_scaled_sum_by_name_is_what_it_was() -> None:
    model = calling(lambda x, w, b: torch.add(x, alpha=0.5, other=b.expand(1, 16, 16)))
    assert logit_sqnr(quantize(model, images(), Recipe.paper(8, 8))(images()), model(images())) > 20


LEFT: dict[str, Call] = {
    "one": lambda x, w, b: torch.einsum("ntc->nct", x).mT,
    "one of a list": lambda x, w, b: torch.einsum("ntc->nct", [x]).mT,
    "three": lambda x, w, b: torch.einsum("ntc,cd,d->ntd", x, w, b),
}


@pytest.mark.parametrize(
    "recipe", [Recipe.paper(8, 8), Recipe.accurate(8, 8, flat_copies=0)], ids=["paper", "accurate"]
)
@pytest.mark.parametrize("way", LEFT)
@torch.no_grad()
def test_sums_of_other_than_two_factors_stay_as_they_are(way: str, recipe: Recipe) -> None:
    model = calling(LEFT[way])
    qmodel = quantize(model, images(), recipe)
    assert not [name for name in all_points(qmodel) if "." not in name and role(name) in ("left", "right")]
    assert logit_sqnr(qmodel(images()), model(images())) > 20

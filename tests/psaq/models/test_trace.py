"""What a trace writes down: who calls what, on what; and that nothing of it stays behind."""

import pytest
import torch
from makes import images_for, made
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.models.trace import IMAGE, trace


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)
        self.token = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x.flatten(2))
        y += self.token
        return self.second(y @ y.transpose(-1, -2) @ y)


def test_calls_come_in_order_with_their_sources():
    seen = trace(Small(), torch.randn(1, 3, 2, 2))
    assert [call.name for call in seen.calls] == [
        "flatten",
        "linear",
        "add_",
        "transpose",
        "matmul",
        "matmul",
        "linear",
    ]
    assert seen.calls[0].sources == (IMAGE,)
    assert seen.calls[1].sources == (0, "first.weight", "first.bias")
    assert seen.calls[1].module == "first"
    assert seen.calls[2].sources == (1, "token")
    assert seen.calls[4].sources == (2, 3)
    assert [call.ordinal for call in seen.of_kind("product")] == [0, 1]
    assert seen.outputs == [6]


def test_operands_may_be_named():
    class Named(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.mul(input=x, other=2.0)
            return torch.div(torch.mul(input=y, other=x), other=4)

    seen = trace(Named(), torch.randn(1, 3, 2, 2))
    assert [(call.sources, call.settings.get("by")) for call in seen.calls] == [
        ((IMAGE,), 2.0),
        ((0, IMAGE), None),
        ((1,), 4),
    ]


def test_what_depends_on_parameters_alone_is_static():
    seen = trace(Small(), torch.randn(1, 3, 2, 2))
    assert seen.is_static("token")
    assert not seen.is_static(IMAGE)
    assert not any(seen.is_static(call.index) for call in seen.calls)
    assert seen.reached(6, lambda call: call.kind == "layer") == [6]


def test_a_model_is_left_as_it_was():
    model = made("timm: beit").train()
    trace(model, images_for(model))
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert "forward_features" not in vars(model)


def test_arithmetic_in_a_hook_is_not_the_models():
    model, seen = Small(), []
    model.first.register_forward_hook(lambda _, __, output: seen.append(output + output) or output + output)
    calls = trace(model, torch.randn(1, 3, 2, 2)).of_kind("sum")
    assert [(call.module, call.ordinal) for call in calls] == [("", 0)]
    assert seen


def test_a_model_that_fails_is_named_and_left_as_it_was():
    model = Small()
    with pytest.raises(PsaqError, match=r"Small: does not take images of shape \(1, 3, 5, 5\)"):
        trace(model, torch.randn(1, 3, 5, 5))
    assert not any(module._forward_hooks for module in model.modules())


def test_a_method_of_the_instances_own_comes_back(vit):
    own = vit.forward_features
    vit.forward_features = own
    trace(vit, torch.zeros(1, 3, 32, 32))
    assert vars(vit)["forward_features"] is own

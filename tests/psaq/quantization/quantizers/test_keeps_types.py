"""Scales, biases and integers survive a cast of the model around them bit for bit, and still follow it elsewhere."""

import pytest
import torch
from torch import nn

from psaq.quantization.deployment.integer import IntegerLinear
from psaq.quantization.quantizers.affine import AffineQuantizer
from psaq.quantization.quantizers.uneven import LogQuantizer, SplitQuantizer
from psaq_kernels import PerTensor, QuantizedWeight


def integer_linear() -> IntegerLinear:
    integers = torch.randint(-128, 128, (3, 5), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    weight = QuantizedWeight.from_integers(integers, torch.tensor([0.1, 1e-9, 1e9]))
    return IntegerLinear(weight, torch.tensor([1 / 3, -1e-8, 70_000.0]), PerTensor(1e-9, 3), torch.float32)


MODULES = {
    "affine": AffineQuantizer(torch.tensor(1 / 3), torch.tensor(7), 8),
    "affine per channel": AffineQuantizer(torch.tensor([1e-9, 1 / 3, 1e9]), None, 4),
    "log": LogQuantizer(torch.tensor(1 / 3), torch.tensor(11.1), 8),
    "split": SplitQuantizer(torch.tensor(1e-9), torch.tensor(1 / 3), 64, 2, 8),
    "integer linear": integer_linear(),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_a_cast_changes_no_bit(module: nn.Module, dtype: torch.dtype) -> None:
    before = {name: tensor.clone() for name, tensor in module.named_buffers()}
    nn.Sequential(nn.Linear(2, 2), module).to(dtype)
    for name, tensor in module.named_buffers():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name]), name


def test_a_move_is_followed_with_or_without_a_cast() -> None:
    for arguments in ({"device": "meta"}, {"device": "meta", "dtype": torch.float16}):
        moved = integer_linear().to(**arguments)
        assert all(tensor.is_meta for tensor in moved.buffers())
        assert moved.scale.dtype == torch.float32
    assert not any(tensor.is_meta for tensor in moved.to_empty(device="cpu").buffers())

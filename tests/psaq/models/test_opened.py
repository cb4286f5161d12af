"""torch's attention module, written out, answers as it did, whatever it is called with."""

import copy

import pytest
import torch
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.models.opened import open_attention


class Holder(nn.Module):
    def __init__(self, **options: object):
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(16, 4, **options).eval()  # type: ignore[arg-type]


def both(holder: Holder, *args: Tensor, **options: object) -> list[tuple[Tensor, Tensor | None]]:
    opened = copy.deepcopy(holder)
    open_attention(opened)
    return [model.attention(*args, **options) for model in (holder, opened)]


def assert_same(answers: list[tuple[Tensor, Tensor | None]]) -> None:
    for one, other in zip(*answers, strict=True):
        if one is None:
            assert other is None
        else:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_self_attention(batch_first, need_weights):
    x = tokens(3, 5, 16)
    assert_same(both(Holder(batch_first=batch_first), x, x, x, need_weights=need_weights))


def test_one_row_without_a_batch():
    x = tokens(5, 16)
    assert_same(both(Holder(batch_first=True), x, x, x))


@pytest.mark.parametrize("averaged", [True, False])
def test_between_others_with_other_widths(averaged):
    holder = Holder(batch_first=True, kdim=6, vdim=10, bias=False)
    args = tokens(2, 3, 16), tokens(2, 5, 6), tokens(2, 5, 10)
    assert_same(both(holder, *args, average_attn_weights=averaged))


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_masks(kind):
    x = tokens(2, 5, 16)
    blocked = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
    mask = blocked if kind == torch.bool else torch.zeros(5, 5).masked_fill(blocked, -torch.inf)
    padding = torch.tensor([[False] * 5, [False] * 4 + [True]])
    assert_same(both(Holder(batch_first=True), x, x, x, attn_mask=mask))
    assert_same(both(Holder(batch_first=True), x, x, x, key_padding_mask=padding))
    assert_same(both(Holder(batch_first=True), x, x, x, attn_mask=blocked, key_padding_mask=padding))
    assert_same(both(Holder(batch_first=True), x, x, x, attn_mask=blocked.expand(8, 5, 5)))


def test_learnt_keys_are_refused_by_name():
    with pytest.raises(PsaqError, match="attention: psaq cannot quantise a MultiheadAttention with add_bias_kv"):
        open_attention(Holder(add_bias_kv=True))

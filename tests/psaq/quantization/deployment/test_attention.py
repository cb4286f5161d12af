"""Attention written out computes what torch's fused attention does, and leaves alone what it does not know."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from psaq import Recipe, deploy, quantize
from psaq.quantization.deployment import attention
from psaq.quantization.deployment import deploy as deploy_module
from psaq.quantization.deployment.attention import WrittenOut, in_chunks, whole

BFLOAT16_STEP = 2**-8
"""Between two numbers, relative to them: scores, weights and what is attended are each rounded by half of one."""


def operands(*batch: int, queries: int = 5, keys: int = 7, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(queries * 100 + keys)
    shapes = ((queries, 8), (keys, 8), (keys, 6))
    return [torch.randn(*batch, *shape, generator=generator).to(dtype) for shape in shapes]


def exact(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    query, key, value = query.double(), key.double(), value.double()
    return (scale * query @ key.mT).softmax(-1) @ value


@given(
    batch=st.lists(st.integers(0, 3), min_size=1, max_size=3),
    queries=st.integers(0, 9),
    keys=st.integers(1, 9),
    scale=st.sampled_from([None, 1.0, 0.1]),
    scores_at_once=st.sampled_from([81, 200, 2**21]),
)
def test_chunks_are_right_within_bfloat16(
    batch: list[int], queries: int, keys: int, scale: float | None, scores_at_once: int
) -> None:
    q, k, v = operands(*batch, queries=queries, keys=keys)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_SCORES_AT_ONCE", scores_at_once)
        found = in_chunks(q, k, v, scale=scale)
    factor = 8**-0.5 if scale is None else scale
    assert found is not None
    assert found.dtype == torch.bfloat16
    # A score's rounding changes its weight by as much, relatively: by half a step of the largest score.
    largest = max(1.0, float((factor * q.double() @ k.double().mT).abs().amax())) if q.numel() and k.numel() else 1.0
    reach = float(v.abs().amax()) if v.numel() else 0.0
    torch.testing.assert_close(
        found.double(), exact(q, k, v, factor), rtol=0, atol=2 * (largest + 1) * BFLOAT16_STEP * reach
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({}, {"attn_mask": torch.zeros(5, 7)}),
        ({}, {"dropout_p": 0.5}),
        ({}, {"is_causal": True}),
        ({}, {"enable_gqa": True}),
        ({"dtype": torch.float32}, {}),
        ({"queries": 2**11, "keys": 2**11}, {}),  # where the fused form saves the memory of all scores
    ],
)
def test_chunks_leave_other_calls(change: dict[str, Any], named: dict[str, Any]) -> None:
    assert in_chunks(*operands(2, 3, **change), **named) is None


def test_chunks_leave_heads_that_are_shared() -> None:
    q, _, _ = operands(2, 4)
    _, k, v = operands(2, 1)
    assert in_chunks(q, k, v) is None


@pytest.mark.parametrize("mask", [None, torch.linspace(-2, 2, 35).view(5, 7)])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_the_whole_is_right(mask: Tensor | None, scale: float | None) -> None:
    q, k, v = operands(2, 3, dtype=torch.float64)
    expected = F.scaled_dot_product_attention(q, k, v, mask, scale=scale)
    found = whole(q, k, v, mask, scale=scale)
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)  # float64, summed in another order


def test_the_whole_leaves_masks_of_truths() -> None:
    assert whole(*operands(2, 3), attn_mask=torch.ones(5, 7, dtype=torch.bool)) is None


def test_only_attention_is_replaced_and_only_while_entered() -> None:
    q, k, v = operands(2, 3)
    seen: list[tuple[Any, ...]] = []

    def form(*args: Any, **kwargs: Any) -> Tensor | None:
        seen.append((*args, kwargs))
        return None if kwargs else args[2]

    with WrittenOut(form):
        assert F.scaled_dot_product_attention(q, k, v) is v
        fused = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        assert torch.equal(q @ k.mT, torch.matmul(q, k.mT))
    assert torch.equal(fused, F.scaled_dot_product_attention(q, k, v, scale=1.0))
    assert [args[-1] for args in seen] == [{}, {"scale": 1.0}]


# In a deployed model -------------------------------------------------------------------------------------------------


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Grows with each attention of a model compiled for a processor whose products are faster: whether it was computed
    in chunks."""
    found: list[bool] = []

    def watched(*args: Any, **kwargs: Any) -> Tensor | None:
        y = in_chunks(*args, **kwargs)
        found.append(y is not None)
        return y

    monkeypatch.setattr(deploy_module, "has_bfloat16_vectors", lambda: True)
    monkeypatch.setattr(deploy_module, "in_chunks", watched)
    return found


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def compiled(model: nn.Module) -> Any:
    torch.compiler.reset()
    return torch.compile(model, fullgraph=True, backend="eager")


@torch.no_grad()
def test_a_compiled_model_in_bfloat16_attends_in_chunks(vit: nn.Module, chunks: list[bool]) -> None:
    deployed = deploy(quantize(vit, images(), Recipe(8, 8, "linear")), torch.bfloat16)
    expected = deployed(images())
    assert not chunks
    found = compiled(deployed)(images())
    assert chunks == [True] * len(vit.blocks)
    # Some levels differ by one, since bfloat16 is rounded elsewhere; each moves a logit by a few of its last digits.
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05 * float(expected.abs().amax()))


@pytest.mark.parametrize(("dtype", "backend"), [(torch.float32, None), (torch.bfloat16, "exact")])
@torch.no_grad()
def test_float32_and_the_simulations_bits_attend_as_torch_does(
    vit: nn.Module, dtype: torch.dtype, backend: Any, chunks: list[bool]
) -> None:
    compiled(deploy(quantize(vit, images(), Recipe(8, 8, "linear")), dtype, backend))(images())
    assert not chunks


@pytest.mark.usefixtures("chunks")
@torch.no_grad()
def test_any_number_of_images_is_computed_right(vit: nn.Module) -> None:
    deployed = deploy(quantize(vit, images(), Recipe(8, 8, "linear")), torch.bfloat16)
    fast = compiled(deployed)
    for count in (6, 4, 3, 1):
        expected = deployed(images(count))
        torch.testing.assert_close(fast(images(count)), expected, rtol=0, atol=0.05 * float(expected.abs().amax()))

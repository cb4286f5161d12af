"""What the processor at hand sums rightly, by products that are not those of the check itself."""

import pytest
import torch

from psaq_kernels import processor
from psaq_kernels.processor import BYTE, SEVEN_BITS, dot_products, has_bfloat16_vectors, largest_exact_weight


def sums(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    outputs = len(weight)
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    zeros = torch.zeros(outputs, dtype=torch.int32)
    scale = torch.ones(outputs)
    return torch.ops.onednn.qlinear_pointwise(
        x, 1.0, 0, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )


@pytest.mark.skipif(largest_exact_weight() == 0, reason="oneDNN has no product of bytes here")
@pytest.mark.parametrize("shape", [(1, 8, 8), (197, 192, 576), (8, 768, 1000), (5, 37, 11)], ids=str)
def test_sums_at_their_extremes_are_exact_up_to_the_weight_that_was_found(shape: tuple[int, int, int]) -> None:
    rows, inputs, outputs = shape
    largest = largest_exact_weight()
    generator = torch.Generator().manual_seed(0)
    ends = torch.tensor([-largest, largest - 1, -largest, 1 - largest], dtype=torch.int8)
    weight = ends[torch.randint(0, 4, (outputs, inputs), generator=generator)]
    weight[0], weight[-1] = -largest, largest - 1
    x = torch.tensor([255, 254, 255, 0], dtype=torch.uint8)[torch.randint(0, 4, (rows, inputs), generator=generator)]
    x[0] = 255
    exact = x.long() @ weight.long().T
    assert torch.equal(sums(weight, x), exact.float()), "float32 holds whole numbers up to 2^24, and rounds larger sums"


def test_processors_with_dot_products_take_all_of_a_byte() -> None:
    if dot_products():
        assert largest_exact_weight() == BYTE
    else:
        assert largest_exact_weight() in (0, SEVEN_BITS, BYTE)


@pytest.mark.parametrize(("exact", "found"), [((), 0), ((SEVEN_BITS,), SEVEN_BITS), ((SEVEN_BITS, BYTE), BYTE)])
def test_the_largest_weight_that_passes_is_taken(
    exact: tuple[int, ...], found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "_has_products", lambda: True)
    monkeypatch.setattr(processor, "_sums_are_exact", lambda magnitude: magnitude in exact)
    assert processor._largest_exact_weight.__wrapped__() == found


def test_a_processor_without_vectors_has_no_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert processor._largest_exact_weight.__wrapped__() == 0


@pytest.mark.parametrize(
    ("capabilities", "vectors"),
    [
        ({"avx512_bf16": True}, True),
        ({"avx512_bf16": True, "amx_bf16": True}, False),
        ({"avx2": True}, False),
        ({}, False),
    ],
)
def test_tiles_of_bfloat16_are_no_vectors(
    capabilities: dict[str, bool], vectors: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_bfloat16_vectors() is vectors

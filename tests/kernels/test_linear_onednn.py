"""oneDNN's integer linear layer against exact sums and a float64 epilogue."""

import copy
import gc
from typing import Any

import pytest
import torch
from backends import EXACT_BITS
from hypothesis import given, settings
from hypothesis import strategies as st

from psaq_kernels import (
    BackendError,
    PerTensor,
    PerToken,
    QuantizedWeight,
    layer_norm_quantize,
    linear_onednn,
    processor,
    quant_linear,
)
from psaq_kernels import linear as linear_module
from psaq_kernels.levels import as_bytes, as_stored
from psaq_kernels.linear_onednn import bytes_of, runs_in_integers
from psaq_kernels.linear_torch import to_levels
from psaq_kernels.processor import largest_exact_weight

pytestmark = pytest.mark.skipif(largest_exact_weight() == 0, reason="oneDNN has no product of bytes here")

STATIC, NEXT = PerTensor(0.02, 113), PerTensor(0.05, 100)


def make_weight(outputs: int, inputs: int, bits: int, seed: int = 0) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(seed)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    integers = torch.randint(low, high, (outputs, inputs), dtype=torch.int8, generator=generator)
    return QuantizedWeight.from_integers(integers, torch.rand(outputs, generator=generator) * 1e-3 + 1e-5, bits)


def make_bytes(rows: int, inputs: int, bits: int = 8, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**bits, (rows, inputs), dtype=torch.uint8, generator=generator)


def exact(levels: torch.Tensor, weight: QuantizedWeight, input: PerTensor, bias: torch.Tensor | None) -> torch.Tensor:
    sums = (levels.double() - input.zero_point) @ weight.integers().double().T
    y = sums * weight.scale.double() * input.scale
    return y if bias is None else y + bias.double()


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(0, 40),
    inputs=st.integers(1, 300),
    outputs=st.integers(1, 60),
    bits=st.integers(2, EXACT_BITS),
    input_bits=st.integers(2, 8),
    biased=st.booleans(),
    gelu=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_results_are_the_exact_ones_to_the_rounding_of_float32(
    rows: int, inputs: int, outputs: int, bits: int, input_bits: int, biased: bool, gelu: bool, seed: int
) -> None:
    grid = PerTensor(0.03, seed % 2**input_bits, input_bits)
    weight, levels = make_weight(outputs, inputs, bits, seed), make_bytes(rows, inputs, input_bits, seed)
    bias = torch.linspace(-1, 1, outputs) if biased else None
    activation: Any = "gelu" if gelu else None
    y = quant_linear(levels, weight, grid, bias, activation=activation, dtype=torch.float32, backend="onednn")
    expected = exact(levels, weight, grid, bias)
    expected = torch.nn.functional.gelu(expected) if gelu else expected
    # The sum, two scales and the bias are rounded once each; the GELU's error function is good to 1e-6.
    largest = (expected.abs().max() if rows else torch.zeros(())) + (1 if biased or gelu else 0)
    assert y.shape == (rows, outputs)
    assert ((y.double() - expected).abs() <= 2e-6 * largest + 1e-30).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("read", ["float", "int8", "uint8"])
def test_every_type_goes_in_and_out(dtype: torch.dtype, read: str) -> None:
    weight, levels = make_weight(24, 48, 4), make_bytes(20, 48)
    x = {
        "float": (levels.float() - STATIC.zero_point) * STATIC.scale,
        "int8": as_stored(levels, STATIC),
        "uint8": levels,
    }[read]
    y = quant_linear(x, weight, STATIC, dtype=dtype, backend="onednn")
    assert y.dtype == dtype
    expected = exact(levels, weight, STATIC, None)
    assert ((y.double() - expected).abs() <= torch.finfo(dtype).eps * expected.abs() + 1e-6).all()


@pytest.mark.parametrize("bits", [8, 5])
@pytest.mark.parametrize("dtype", [None, torch.int8, torch.uint8])
def test_levels_come_out_as_either_type_at_most_one_apart(bits: int, dtype: torch.dtype | None) -> None:
    weight, levels, grid = make_weight(24, 48, 4), make_bytes(200, 48), PerTensor(0.01, 9, bits)
    found = quant_linear(levels, weight, STATIC, output=grid, dtype=dtype, backend="onednn")
    assert found.dtype == (dtype or torch.int8)
    found = found if found.dtype == torch.uint8 else as_bytes(found, grid)
    position = exact(levels, weight, STATIC, None) / grid.scale + grid.zero_point
    # Half a level, and what float32 moves a number that lies between two.
    assert ((found.double() - position.clamp(0, 2**bits - 1)).abs() <= 0.5 + 1e-3).all()
    assert len(found.unique()) > 10


@pytest.mark.parametrize("backend", ["torch", "onednn"])
def test_bytes_are_read_as_the_levels_they_are(backend: str) -> None:
    weight, levels, grid = make_weight(6, 20, 4), make_bytes(5, 20, 6), PerTensor(0.1, 17, 6)
    found = quant_linear(levels, weight, grid, dtype=torch.float32, backend=backend)
    stored = quant_linear(as_stored(levels, grid), weight, grid, dtype=torch.float32, backend=backend)
    assert torch.equal(found, stored)
    emitted = quant_linear(levels, weight, grid, output=NEXT, dtype=torch.uint8, backend="torch")
    assert torch.equal(as_stored(emitted, NEXT), quant_linear(levels, weight, grid, output=NEXT, backend="torch"))


@given(st.integers(2, 8), st.integers(0, 255), st.floats(1e-4, 10), st.integers(0, 1000))
@settings(deadline=None, max_examples=60)
def test_bytes_are_the_stored_levels(bits: int, zero_point: int, scale: float, seed: int) -> None:
    grid = PerTensor(scale, zero_point % 2**bits, bits)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 33, generator=generator) * 200 * scale
    x[0, :4] = torch.tensor([1e30, -1e30, float("inf"), -float("inf")])
    assert torch.equal(as_stored(bytes_of(x, grid), grid), to_levels(x, grid))


def test_a_layer_norm_emits_the_same_levels_as_bytes() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((9, 192), (192,), (192,)))
    stored = layer_norm_quantize(x, weight, bias, NEXT)
    found = layer_norm_quantize(x, weight, bias, NEXT, dtype=torch.uint8)
    assert found.dtype == torch.uint8
    apart = (as_stored(found, NEXT).int() - stored.int()).abs()
    assert apart.max() <= 1
    assert apart.double().mean() < 0.01


def test_it_is_the_choice_where_this_processor_sums_rightly(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow, wide, levels = make_weight(6, 20, 4), make_weight(6, 20, 8), make_bytes(5, 20)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    device = levels.device
    for largest, bits, expected in ((128, 8, "onednn"), (64, 8, "torch"), (64, 4, "onednn"), (0, 4, "torch")):
        monkeypatch.setattr(linear_module, "largest_exact_weight", lambda largest=largest: largest)
        weight = narrow if bits == 4 else wide
        assert linear_module._choose_backend(None, device, weight, STATIC) == expected
        assert linear_module._choose_backend(None, device, weight, PerToken()) == "torch"


def test_a_weight_that_would_be_summed_wrongly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_onednn, "largest_exact_weight", lambda: 64)
    weight = make_weight(6, 20, 8)
    assert not runs_in_integers(weight)
    with pytest.raises(BackendError, match="sums products of bytes rightly up to a weight of 64"):
        quant_linear(make_bytes(5, 20), weight, STATIC, dtype=torch.float32, backend="onednn")
    assert runs_in_integers(make_weight(6, 20, 7))
    monkeypatch.setattr(linear_onednn, "largest_exact_weight", lambda: 0)
    assert not runs_in_integers(make_weight(6, 20, 4))


def test_rows_with_scales_of_their_own_are_refused() -> None:
    with pytest.raises(BackendError, match="PerToken gives each its own"):
        quant_linear(torch.zeros(5, 20), make_weight(6, 20, 4), PerToken(), backend="onednn")


def test_another_type_of_levels_is_refused() -> None:
    with pytest.raises(TypeError, match="dtype must be int8 or uint8 where output is given"):
        quant_linear(make_bytes(5, 20), make_weight(6, 20, 4), STATIC, output=NEXT, dtype=torch.float32)


def test_a_weight_that_changes_in_place_is_prepared_again() -> None:
    weight, levels = make_weight(6, 20, 5), make_bytes(5, 20)
    before = quant_linear(levels, weight, STATIC, dtype=torch.float32, backend="onednn")
    copied = copy.deepcopy(weight)
    weight.values.neg_().clamp_(-16, 15)
    after = quant_linear(levels, weight, STATIC, dtype=torch.float32, backend="onednn")
    torch.testing.assert_close(after.double(), exact(levels, weight, STATIC, None), rtol=1e-5, atol=1e-6)
    assert torch.equal(quant_linear(levels, copied, STATIC, dtype=torch.float32, backend="onednn"), before)


def test_what_is_prepared_goes_with_its_weight() -> None:
    gc.collect()
    before = len(linear_onednn._weights)
    weight = make_weight(6, 20, 4)
    quant_linear(make_bytes(5, 20), weight, STATIC, dtype=torch.float32, backend="onednn")
    assert len(linear_onednn._weights) == before + 1
    del weight
    gc.collect()
    assert len(linear_onednn._weights) == before


def test_compiles_into_one_graph_with_the_same_result() -> None:
    first, second = make_weight(32, 48, 4), make_weight(8, 32, 4)

    def network(x: torch.Tensor) -> torch.Tensor:
        hidden = quant_linear(x, first, STATIC, activation="gelu", output=NEXT, dtype=torch.uint8, backend="onednn")
        return quant_linear(hidden, second, NEXT, dtype=torch.float32, backend="onednn") * 2

    x = torch.randn(9, 48, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.compile(network, fullgraph=True, backend="aot_eager")(x), network(x))


def test_the_check_runs_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    largest_exact_weight()
    monkeypatch.setattr(processor, "_sums_are_exact", lambda _: pytest.fail("tried again"))
    assert largest_exact_weight() >= 64


def test_groups_are_left_to_another_backend_and_refused_by_name() -> None:
    scale, integers = torch.rand(6, 2) + 0.1, torch.ones(6, 40, dtype=torch.int8)
    weight = QuantizedWeight.from_integers(integers, scale, 4, group=32)
    assert not runs_in_integers(weight)
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(quant_linear(x, weight, STATIC), quant_linear(x, weight, STATIC, backend="torch"))
    with pytest.raises(BackendError, match="scales whole output channels, and this weight has a scale for each group"):
        quant_linear(x, weight, STATIC, backend="onednn")

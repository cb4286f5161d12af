"""The integer linear layer against int64 sums and a float32 epilogue in numpy, in both backends."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from backends import BACKENDS, interpreted
from hypothesis import given, settings
from hypothesis import strategies as st

from psaq_kernels import BackendError, PerTensor, PerToken, QuantizedWeight, linear_torch, quant_linear
from psaq_kernels.epilogue import Epilogue
from psaq_kernels.linear import _quant_linear
from psaq_kernels.tunable import Config

STATIC = PerTensor(0.02, 113)
NEXT = PerTensor(0.05, 100)


def make_weight(outputs: int, inputs: int, bits: int, seed: int = 0, group: int | None = None) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(seed)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    integers = torch.randint(low, high, (outputs, inputs), dtype=torch.int8, generator=generator)
    shape = (outputs,) if group is None else (outputs, -(-inputs // group))
    return QuantizedWeight.from_integers(integers, torch.rand(shape, generator=generator) * 1e-3 + 1e-5, bits, group)


def make_x(rows: int, inputs: int, dtype: torch.dtype, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.int8:
        return torch.randint(-128, 128, (rows, inputs), dtype=torch.int8, generator=generator)
    return torch.randn(rows, inputs, generator=generator).to(dtype)


def stored_levels(y: np.ndarray, grid: PerTensor) -> np.ndarray:
    rounded = np.rint(y * (np.float32(1) / np.float32(grid.scale)))
    return np.clip(rounded + grid.zero_point, 0, 2**grid.bits - 1) - 2 ** (grid.bits - 1)


def oracle(
    x: torch.Tensor, weight: QuantizedWeight, input: PerTensor | PerToken, bias: torch.Tensor | None
) -> np.ndarray:
    """Before activation: exact integer sums, then one float32 rounding for each product and each sum."""
    integers = weight.integers().numpy().astype(np.int64)
    scale = weight.scale.numpy()
    if isinstance(input, PerTensor):
        levels = x.numpy() if x.dtype == torch.int8 else stored_levels(x.float().numpy(), input)
        levels, input_scale = levels.astype(np.int64) - input.stored_zero, np.float32(input.scale)
    else:
        values = x.float().numpy()
        magnitude = np.maximum(np.abs(values).max(1, keepdims=True), np.float32(1e-30))
        highest = np.float32(input.highest)
        levels, input_scale = np.rint(values * (highest / magnitude)).astype(np.int64), magnitude / highest
    if weight.group is not None:
        y = in_groups(levels, integers, scale, weight.group) * input_scale
    elif isinstance(input, PerTensor):
        y = (levels @ integers.T).astype(np.float32) * (scale * input_scale)
    else:
        y = (levels @ integers.T).astype(np.float32) * scale * input_scale
    return y if bias is None else y + bias.numpy()


def in_groups(levels: np.ndarray, integers: np.ndarray, scale: np.ndarray, group: int) -> np.ndarray:
    """Each group's sum times its scale, one added after the other in float32."""
    total = np.zeros((len(levels), len(integers)), np.float32)
    for index in range(scale.shape[1]):
        inputs = slice(index * group, (index + 1) * group)
        total += (levels[:, inputs] @ integers[:, inputs].T).astype(np.float32) * scale[:, index]
    return total


def gelu(y: np.ndarray) -> np.ndarray:
    y = y.astype(np.float64)
    return 0.5 * y * (1 + np.vectorize(math.erf, otypes=[float])(y / math.sqrt(2)))


def ulps(actual: torch.Tensor, expected: np.ndarray) -> float:
    """The largest distance in units of the last place of ``actual``'s type."""
    wanted = torch.from_numpy(expected.astype(np.float64))
    exponent = torch.floor(torch.log2(wanted.abs().clamp_min(torch.finfo(actual.dtype).tiny)))
    spacing = torch.finfo(actual.dtype).eps * 2.0**exponent
    return ((actual.double() - wanted).abs() / spacing).max().item() if wanted.numel() else 0.0


def cases() -> list[Any]:
    """Every pairing of what comes in, what the weight is, and how x is quantised."""
    return [
        pytest.param(dtype, bits, input, id=f"{str(dtype)[6:]}-W{bits}-{type(input).__name__}")
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int8)
        for bits in (8, 4)
        for input in (STATIC, PerToken())
        if not (dtype == torch.int8 and isinstance(input, PerToken))
    ]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "bits", "input"), cases())
@pytest.mark.parametrize("shape", [(1, 1, 1), (33, 97, 40), (70, 64, 17)], ids=str)
def test_output_is_the_oracle_to_one_ulp(
    backend: str, dtype: torch.dtype, bits: int, input: PerTensor | PerToken, shape: tuple[int, int, int]
) -> None:
    rows, inputs, outputs = shape
    x, weight = make_x(rows, inputs, dtype), make_weight(outputs, inputs, bits)
    bias = torch.randn(outputs, generator=torch.Generator().manual_seed(2))
    result_type = torch.float32 if dtype == torch.int8 else dtype
    y = quant_linear(x, weight, input, bias, dtype=result_type, backend=backend)
    expected = oracle(x, weight, input, bias)
    assert y.dtype == result_type
    # The same float32 number before the last rounding; Triton's interpreter truncates to bfloat16.
    assert torch.equal(y, torch.from_numpy(expected).to(result_type)) or ulps(y, expected) <= 1
    if result_type == torch.float32:
        assert torch.equal(y, torch.from_numpy(expected))


GROUPED_SHAPES = [(1, 1, 1), (33, 97, 40), (20, 192, 24), (3, 256, 7)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", GROUPED_SHAPES, ids=str)
def test_groups_of_inputs_have_scales_of_their_own(
    backend: str, group: int, bits: int, shape: tuple[int, int, int]
) -> None:
    rows, inputs, outputs = shape
    weight, bias = make_weight(outputs, inputs, bits, group=group), torch.linspace(-1, 1, outputs)
    for dtype, input in ((torch.int8, STATIC), (torch.float32, STATIC), (torch.float32, PerToken())):
        x = make_x(rows, inputs, dtype)
        y = quant_linear(x, weight, input, bias, dtype=torch.float32, backend=backend)
        assert torch.equal(y, torch.from_numpy(oracle(x, weight, input, bias)))


@pytest.mark.parametrize("bits", [8, 4])
def test_one_scale_in_every_group_is_one_scale_an_output(bits: int) -> None:
    grouped, whole = make_weight(12, 96, bits, group=32), make_weight(12, 96, bits)
    grouped = QuantizedWeight.from_integers(grouped.integers(), whole.scale[:, None].repeat(1, 3), bits, 32)
    x = make_x(7, 96, torch.float32)
    expected = quant_linear(x, whole, STATIC, backend="torch")
    torch.testing.assert_close(quant_linear(x, grouped, STATIC, backend="torch"), expected, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 40),
    inputs=st.integers(1, 300),
    outputs=st.integers(1, 60),
    bits=st.integers(2, 8),
    activation_bits=st.integers(2, 8),
    per_token=st.booleans(),
    seed=st.integers(0, 1000),
    group=st.sampled_from([None, 32, 64, 128]),
)
def test_integers_are_exact_for_any_shape_and_bits(
    rows: int, inputs: int, outputs: int, bits: int, activation_bits: int, per_token: bool, seed: int, group: int | None
) -> None:
    zero_point = seed % 2**activation_bits
    input = PerToken(activation_bits) if per_token else PerTensor(0.03, zero_point, activation_bits)
    x, weight = make_x(rows, inputs, torch.float32, seed), make_weight(outputs, inputs, bits, seed, group)
    y = quant_linear(x, weight, input, backend="torch")
    assert torch.equal(y, torch.from_numpy(oracle(x, weight, input, None)))


EXACT_SHAPES = [(1, 1, 1), (5, 1024, 3), (3, 1025, 7), (2, 4099, 5), (18, 24, 16), (1, 65535, 2)]


@pytest.mark.parametrize("way", ["float_matmul", "padded_int_mm", "integer_matmul"])
@pytest.mark.parametrize("shape", EXACT_SHAPES, ids=str)
def test_every_way_to_multiply_is_exact_at_the_extremes(way: str, shape: tuple[int, int, int]) -> None:
    rows, inputs, outputs = shape
    extremes = torch.tensor([-128, 127, -127, 126], dtype=torch.int8)
    generator = torch.Generator().manual_seed(0)
    a = extremes[torch.randint(0, 4, (rows, inputs), generator=generator)]
    a[0] = -128
    b = extremes[torch.randint(0, 4, (outputs, inputs), generator=generator)]
    b[0] = -128
    expected = a.long() @ b.long().T
    product = getattr(linear_torch, way)(a, b)
    assert product.dtype == torch.int32
    assert torch.equal(product.long(), expected)
    assert product[0, 0] == inputs * 2**14


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bits", [8, 4])
def test_gelu_and_requantisation(backend: str, bits: int) -> None:
    x, weight = make_x(20, 48, torch.float32), make_weight(24, 48, bits)
    bias = torch.linspace(-4, 4, 24)
    before = oracle(x, weight, STATIC, bias)
    activated = quant_linear(x, weight, STATIC, bias, activation="gelu", backend=backend)
    # The vectorised erf is good to 4e-7, which half of |y| multiplies; then three roundings.
    tolerance = 2.0**-21 * np.abs(before) + 1e-30
    assert (np.abs(activated.double().numpy() - gelu(before)) <= tolerance).all()
    emitted = quant_linear(x, weight, STATIC, bias, output=NEXT, backend=backend)
    assert emitted.dtype == torch.int8
    assert torch.equal(emitted, torch.from_numpy(stored_levels(before, NEXT).astype(np.int8)))
    both = quant_linear(x, weight, STATIC, bias, activation="gelu", output=NEXT, backend=backend)
    assert torch.equal(both, torch.from_numpy(stored_levels(activated.numpy(), NEXT).astype(np.int8)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_layer_reads_the_levels_that_another_emitted(backend: str) -> None:
    first, second = make_weight(32, 48, 8), make_weight(8, 32, 4)
    x = make_x(9, 48, torch.float32)
    levels = quant_linear(x, first, STATIC, output=NEXT, backend=backend)
    through_levels = quant_linear(levels, second, NEXT, dtype=torch.float32, backend=backend)
    through_floats = quant_linear(quant_linear(x, first, STATIC, backend=backend), second, NEXT, backend=backend)
    assert torch.equal(through_levels, through_floats)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("input", [STATIC, PerToken()], ids=["static", "per token"])
def test_any_strides_and_leading_dimensions(backend: str, input: PerTensor | PerToken) -> None:
    weight = make_weight(6, 20, 8)
    x = torch.randn(4, 20, 5, generator=torch.Generator().manual_seed(0)).transpose(1, 2)
    assert not x.is_contiguous()
    y = quant_linear(x, weight, input, backend=backend)
    assert y.shape == (4, 5, 6)
    assert torch.equal(y, quant_linear(x.contiguous(), weight, input, backend=backend))
    assert torch.equal(y[2, 3], quant_linear(x[2, 3], weight, input, backend=backend))
    columns = torch.randn(20, 7, generator=torch.Generator().manual_seed(0)).T
    assert torch.equal(
        quant_linear(columns, weight, input, backend=backend),
        quant_linear(columns.contiguous(), weight, input, backend=backend),
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows_give_no_rows(backend: str) -> None:
    y = quant_linear(torch.zeros(0, 3, 20), make_weight(6, 20, 4), STATIC, backend=backend)
    assert y.shape == (0, 3, 6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bits", [8, 4])
def test_nan_per_token_stays_in_its_row(backend: str, bits: int) -> None:
    x, weight = make_x(5, 40, torch.float32), make_weight(6, 40, bits)
    clean = quant_linear(x, weight, PerToken(), backend=backend)
    x[1, 3], x[4, 0] = math.nan, -math.inf
    y = quant_linear(x, weight, PerToken(), backend=backend)
    assert y[[1, 4]].isnan().all()
    assert torch.equal(y[[0, 2, 3]], clean[[0, 2, 3]])


def tiles() -> list[Any]:
    small = {"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_K": 32, "GROUP_M": 2, "SPLIT_K": 1, "QUANTIZE_FIRST": 0}
    changes = [{}, {"SPLIT_K": 3}, {"QUANTIZE_FIRST": 1}, {"QUANTIZE_FIRST": 1, "SPLIT_K": 2}, {"GROUP_M": 1}]
    changes += [{"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 128}]
    return [pytest.param({**small, **change}, id=str(change)) for change in changes]


@interpreted
@pytest.mark.parametrize("constants", tiles())
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("input", [STATIC, PerToken()], ids=["static", "per token"])
def test_every_kind_of_configuration_computes_the_same(
    constants: dict[str, int], bits: int, input: PerTensor | PerToken
) -> None:
    linear_triton = pytest.importorskip("psaq_kernels.linear_triton")
    if constants["SPLIT_K"] > 1 and isinstance(input, PerToken) and not constants["QUANTIZE_FIRST"]:
        pytest.skip("never a candidate: split sums need the rows' scales beforehand")
    x, weight, bias = make_x(75, 130, torch.float32), make_weight(90, 130, bits), torch.linspace(-1, 1, 90)
    out = torch.empty(75, 90, dtype=torch.int8)
    epilogue = Epilogue(bias, gelu=False, output=NEXT, dtype=out.dtype)
    linear_triton.launch(Config(constants, 4, 2), x, weight, input, epilogue, out)
    expected = stored_levels(oracle(x, weight, input, bias), NEXT)
    assert torch.equal(out, torch.from_numpy(expected.astype(np.int8)))


@pytest.mark.parametrize("input", [STATIC, PerToken()], ids=["static", "per token"])
@pytest.mark.parametrize("output", [None, NEXT], ids=["float", "levels"])
def test_the_operator_is_registered_properly(input: PerTensor | PerToken, output: PerTensor | None) -> None:
    weight = make_weight(6, 20, 4)
    grids = [[8.0, 113.0, 0.02] if isinstance(input, PerTensor) else [8.0], [8.0, 100.0, 0.05] if output else []]
    arguments = (make_x(5, 20, torch.bfloat16), weight.values, weight.scale, weight.column_sums, torch.zeros(6))
    torch.library.opcheck(
        _quant_linear, (*arguments, grids[0], True, grids[1], torch.int8 if output else torch.bfloat16, "torch")
    )


def test_compiles_into_one_graph() -> None:
    first, second = make_weight(32, 48, 4), make_weight(8, 32, 8)
    bias = torch.linspace(-1, 1, 32)

    def network(x: torch.Tensor) -> torch.Tensor:
        hidden = quant_linear(x, first, STATIC, bias, activation="gelu", output=NEXT)
        return quant_linear(hidden, second, NEXT, dtype=x.dtype) * 2

    x = make_x(9, 48, torch.float32)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), network(x))


def test_there_is_no_silent_gradient() -> None:
    x = make_x(3, 20, torch.float32).requires_grad_()
    y = quant_linear(x, make_weight(6, 20, 8), STATIC)
    with pytest.raises(RuntimeError):
        y.sum().backward()


GOOD = {"x": torch.zeros(3, 20), "weight": make_weight(6, 20, 8), "input": STATIC}


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"x": [[0.0] * 20]}, TypeError, "x must be a tensor, got list"),
        ({"x": torch.zeros(3, 20).double()}, TypeError, "x must be float32"),
        ({"x": torch.zeros(3, 19)}, ValueError, r"x must be \(..., 20\)"),
        ({"x": torch.tensor(1.0)}, ValueError, r"x must be \(..., 20\)"),
        ({"x": torch.zeros(3, 20, device="meta")}, ValueError, "weight is on cpu, x on meta"),
        ({"weight": torch.zeros(6, 20)}, TypeError, "weight must be a QuantizedWeight"),
        ({"input": 0.02}, TypeError, "input must be PerTensor or PerToken"),
        ({"x": torch.zeros(3, 20, dtype=torch.int8), "input": PerToken()}, TypeError, "input must be PerTensor where"),
        ({"x": torch.zeros(3, 20, dtype=torch.int8)}, TypeError, "dtype must be float32"),
        ({"dtype": torch.float64}, TypeError, "dtype must be float32"),
        ({"bias": torch.zeros(5)}, ValueError, r"bias must be \(6,\)"),
        ({"bias": torch.zeros(6, dtype=torch.int32)}, TypeError, "bias must be a floating-point tensor"),
        ({"bias": [0.0] * 6}, TypeError, "bias must be a floating-point tensor, got list"),
        ({"activation": "relu"}, ValueError, "activation must be"),
        ({"output": PerToken()}, TypeError, "output must be PerTensor or None"),
        ({"backend": "numpy"}, ValueError, "backend must be one of"),
        ({"weight": make_weight(1, 65536, 8), "x": torch.zeros(1, 65536)}, ValueError, "weight has 65536 inputs"),
    ],
)
def test_an_error_names_the_argument(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        quant_linear(**{**GOOD, **changed})


def test_triton_asked_for_where_it_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match=r"needs a CUDA or ROCm device|not installed"):
        quant_linear(**GOOD, backend="triton")

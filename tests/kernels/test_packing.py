"""Weights in memory: what is packed comes out again, and what does not fit is refused by name."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psaq_kernels import QuantizedWeight
from psaq_kernels.packing import pack_groups, pack_nibbles, packed_length, unpack_groups, unpack_nibbles


def integers(outputs: int, inputs: int, bits: int = 4, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (outputs, inputs)
    return torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), shape, dtype=torch.int8, generator=generator)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 9), st.integers(1, 40), st.integers(0, 100))
def test_unpacking_undoes_packing(outputs: int, inputs: int, seed: int) -> None:
    weight = integers(outputs, inputs, seed=seed)
    packed = pack_nibbles(weight)
    assert packed.shape == (outputs, math.ceil(inputs / 2))
    assert packed.dtype == torch.uint8
    assert torch.equal(unpack_nibbles(packed, inputs), weight)


def test_low_nibbles_hold_the_first_half_of_a_row_and_high_ones_the_second() -> None:
    packed = pack_nibbles(torch.tensor([[1, -2, 3, -4, 5]], dtype=torch.int8))
    assert [[f"{byte:02x}" for byte in row] for row in packed.tolist()] == [["c1", "5e", "03"]]


@pytest.mark.parametrize("outlier", [8, -9])
def test_what_four_bits_cannot_hold_is_refused(outlier: int) -> None:
    with pytest.raises(ValueError, match=r"integers must lie in \[-8, 7\]"):
        pack_nibbles(torch.tensor([[0, outlier]], dtype=torch.int8))


def test_packed_rows_of_the_wrong_length_are_refused() -> None:
    with pytest.raises(ValueError, match="packed has 3 bytes to a row; 7 inputs take 4"):
        unpack_nibbles(torch.zeros(2, 3, dtype=torch.uint8), 7)


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_lie_in_the_smallest_container(bits: int) -> None:
    values = integers(5, 11, bits)
    weight = QuantizedWeight.from_integers(values, torch.rand(5) + 0.1, bits)
    assert weight.packed == (bits <= 4)
    assert weight.values.numel() * weight.values.itemsize == 5 * (packed_length(11) if bits <= 4 else 11)
    assert torch.equal(weight.integers(), values)
    assert torch.equal(weight.column_sums, values.long().sum(1).int())


def test_integers_must_fit_their_bits() -> None:
    with pytest.raises(ValueError, match=r"integers must lie in \[-16, 15\] at 5 bits"):
        QuantizedWeight.from_integers(integers(2, 50, 8), torch.ones(2), 5)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_scales_must_be_positive_and_finite(scale: float) -> None:
    with pytest.raises(ValueError, match="scale must be positive and finite"):
        QuantizedWeight.from_integers(integers(2, 4), torch.tensor([1.0, scale]))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"values": torch.zeros(3, 8)}, TypeError, "values must be int8"),
        ({"values": torch.zeros(3, 7, dtype=torch.int8)}, ValueError, r"values must be \(outputs, 8\)"),
        ({"values": torch.zeros(3, 8, dtype=torch.uint8)}, ValueError, r"values must be \(outputs, 4\)"),
        ({"values": torch.zeros(8, dtype=torch.int8)}, ValueError, "values must be"),
        ({"scale": torch.ones(3).double()}, TypeError, "scale must be torch.float32"),
        ({"scale": torch.ones(2)}, ValueError, r"scale must be \(3,\)"),
        ({"scale": torch.tensor([1.0, 0.0, 1.0])}, ValueError, "scale must be positive and finite"),
        ({"scale": torch.tensor([1.0, math.nan, 1.0])}, ValueError, "scale must be positive and finite"),
        ({"column_sums": torch.zeros(3)}, TypeError, "column_sums must be torch.int32"),
        ({"column_sums": torch.zeros(4, dtype=torch.int32)}, ValueError, r"column_sums must be \(3,\)"),
    ],
)
def test_a_weight_checks_its_tensors(changed: dict, error: type[Exception], message: str) -> None:
    good = {
        "values": torch.zeros(3, 8, dtype=torch.int8),
        "scale": torch.ones(3),
        "column_sums": torch.zeros(3, dtype=torch.int32),
        "inputs": 8,
    }
    QuantizedWeight(**good)
    with pytest.raises(error, match=message):
        QuantizedWeight(**{**good, **changed})


def test_from_integers_names_the_argument() -> None:
    with pytest.raises(TypeError, match="integers must be int8"):
        QuantizedWeight.from_integers(torch.zeros(2, 2), torch.ones(2))
    with pytest.raises(TypeError, match="scale must be a floating-point"):
        QuantizedWeight.from_integers(integers(2, 2), torch.ones(2, dtype=torch.int32))


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("inputs", [1, 33, 64, 200])
def test_groups_lie_in_runs_of_bytes_and_come_back(inputs: int, group: int) -> None:
    wanted = integers(5, inputs)
    packed = pack_groups(wanted, group)
    assert packed.shape == (5, -(-inputs // group) * group // 2)
    assert torch.equal(unpack_groups(packed, inputs, group), wanted)
    first = wanted[:, :group]
    whole = torch.nn.functional.pad(first, (0, group - first.shape[1]))
    assert torch.equal(packed[:, : group // 2], pack_nibbles(whole))


@pytest.mark.parametrize("bits", [8, 4])
def test_sums_and_scales_are_those_of_groups(bits: int) -> None:
    wanted, scale = integers(3, 80), torch.rand(3, 3) + 0.1
    weight = QuantizedWeight.from_integers(wanted, scale, bits, group=32)
    assert torch.equal(weight.integers(), wanted)
    assert weight.column_sums.tolist() == [[int(part.sum()) for part in row.split(32)] for row in wanted]
    assert torch.equal(weight.scales(), scale.repeat_interleave(32, 1)[:, :80])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"group": 48}, "group must be 32, 64, 128 or None, got 48"),
        ({"group": 64}, r"scale must be \(3, 2\)"),
        ({"scale": torch.ones(3)}, r"scale must be \(3, 3\)"),
        ({"scale": torch.zeros(3, 3)}, "positive and finite"),
    ],
)
def test_wrong_groups_are_named(changed, message) -> None:
    right = {"values": torch.zeros(3, 80, dtype=torch.int8), "scale": torch.ones(3, 3), "inputs": 80, "group": 32}
    with pytest.raises(ValueError, match=message):
        QuantizedWeight(column_sums=torch.zeros(3, 3, dtype=torch.int32), **{**right, **changed})

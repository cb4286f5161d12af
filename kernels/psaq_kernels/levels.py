"""How activations become 8-bit integers: per tensor by calibrated constants, or per token as they come."""

import ctypes
import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Int8, UInt8
from torch import Tensor

FLOAT_TYPES = (torch.float32, torch.float16, torch.bfloat16)
MIN_BITS, MAX_BITS = 2, 8
SMALLEST_MAGNITUDE = 1e-30  # of a row: below it, the inverse of a scale would leave float32


@dataclass(frozen=True)
class PerTensor:
    """Static quantisation: one scale and one zero point for the whole tensor, found by calibration.

        level = clamp(round(x / scale) + zero_point, 0, 2^bits − 1)        x̂ = scale · (level − zero_point)

    Rounding is half to even, the quotient is the product with the float32 inverse of the scale (as in torch's
    fake quantisation). In memory a level is an int8, ``level − 2^(bits−1)``. ±∞ saturates; NaN, which no level
    stands for, becomes level 0.

    Args:
        scale: the width of a level, positive and finite; rounded to float32.
        zero_point: the level that stands for 0.0, from 0 to 2^bits − 1.
        bits: 2 to 8.

    Raises:
        TypeError, ValueError: an argument, which the message names, is outside its range.
    """

    scale: float
    zero_point: int = 0
    bits: int = 8
    inverse_scale: float = field(init=False, repr=False, compare=False)
    """1/scale in float32."""

    def __post_init__(self) -> None:
        check_bits(self.bits)
        try:
            scale = _float32(self.scale)
        except TypeError as error:
            raise TypeError(f"scale must be a number, got {self.scale!r}") from error
        if not 0 < scale < math.inf or not math.isfinite(_float32(1 / scale)):
            raise ValueError(f"scale must be positive, finite and a normal float32, got {self.scale}")
        if not isinstance(self.zero_point, int) or not 0 <= self.zero_point < 2**self.bits:
            raise ValueError(
                f"zero_point must be an integer from 0 to {2**self.bits - 1} at {self.bits} bits, got {self.zero_point}"
            )
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "inverse_scale", _float32(1 / scale))

    @property
    def stored_zero(self) -> int:
        """The int8 that stands for 0.0."""
        return self.zero_point - 2 ** (self.bits - 1)

    @property
    def stored_range(self) -> tuple[int, int]:
        """The lowest and the highest int8 in memory."""
        return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1


@dataclass(frozen=True)
class PerToken:
    """Dynamic quantisation: each row symmetric around zero, scaled by its own largest magnitude.

        scale = max|x| / (2^(bits−1) − 1)        level = round(x / scale), in int8

    A row with a NaN or an infinity gives a row of NaN. A row smaller than 1e-30 counts as zero.

    Raises:
        TypeError, ValueError: ``bits`` is not a whole number from 2 to 8.
    """

    bits: int = 8

    def __post_init__(self) -> None:
        check_bits(self.bits)

    @property
    def highest(self) -> int:
        """The level of the row's largest magnitude."""
        return 2 ** (self.bits - 1) - 1


def as_stored(levels: UInt8[Tensor, "*shape"], grid: PerTensor) -> Int8[Tensor, "*shape"]:
    """Levels from 0 to 2^bits − 1 as they are in memory."""
    return (levels - 2 ** (grid.bits - 1)).view(torch.int8)


def as_bytes(stored: Int8[Tensor, "*shape"], grid: PerTensor) -> UInt8[Tensor, "*shape"]:
    """The inverse of `as_stored`."""
    return stored.view(torch.uint8) + 2 ** (grid.bits - 1)


def check_bits(bits: int) -> None:
    """Raises TypeError or ValueError unless ``bits`` is a whole number from 2 to 8."""
    if not isinstance(bits, int):
        raise TypeError(f"bits must be an int, got {bits!r}")
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"bits must be from {MIN_BITS} to {MAX_BITS}, got {bits}")


def _float32(value: float) -> float:
    return ctypes.c_float(value).value

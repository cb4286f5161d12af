"""How many bits a number may have."""

from psaq.errors import PsaqError

MIN_BITS, MAX_BITS = 2, 8
SCALE_BITS = 16
"""Of the scale of a group of weights."""
_GROUPED = 4


def check_bits(what: str, bits: int) -> int:
    """Return ``bits``. Raises PsaqError, naming ``what``, unless it is a whole number from 2 to 8."""
    if not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS:
        raise PsaqError(f"{what}: {bits!r} is not a number of bits from {MIN_BITS} to {MAX_BITS}")
    return bits


def may_be_grouped(bits: int) -> bool:
    """Whether weights of so many bits may be in groups; with more, a scale a channel costs little and stays integer."""
    return bits <= _GROUPED

"""Random numbers as a pure function of (seed, image index, order of the draw)."""

import numpy as np
from jaxtyping import Float, Int, UInt64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Draws:
    """One independent random stream per image; what an image draws does not depend on its neighbours.

    Counter-based: draw number k of image i is a hash of (seed, i, k), so there is no state to carry along.
    The hash is the finaliser of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
    Generators, OOPSLA 2014).
    """

    def __init__(self, indices: Int[np.ndarray, "images"], seed: int) -> None:
        stream = _mix(np.full(indices.shape, seed, dtype=np.int64).view(np.uint64) + _GOLDEN)
        self._keys = _mix(stream + indices.astype(np.uint64) * _GOLDEN)
        self._drawn = 0

    def uniform(self, low: float, high: float, *shape: int) -> Float[np.ndarray, "images ..."]:
        """Uniform numbers in [low, high), float32, shaped (images, *shape)."""
        unit = (self._bits(int(np.prod(shape))) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
        return (low + (high - low) * unit).reshape(-1, *shape)

    def choice(self, options: int, *shape: int) -> Int[np.ndarray, "images ..."]:
        """Uniform integers in [0, options), shaped (images, *shape)."""
        return self.uniform(0, options, *shape).astype(np.int64)

    def noise(self, *shape: int) -> Float[np.ndarray, "images ..."]:
        """Triangular noise with mean 0 in (-1, 1), float32, shaped (images, *shape)."""
        bits = self._bits(int(np.prod(shape))).view(np.uint32).astype(np.float32) * np.float32(2**-32)
        return (bits[:, 0::2] - bits[:, 1::2]).reshape(-1, *shape)

    def _bits(self, count: int) -> UInt64[np.ndarray, "images count"]:
        counters = np.arange(self._drawn + 1, self._drawn + count + 1, dtype=np.uint64) * _GOLDEN
        self._drawn += count
        return _mix(self._keys[:, None] + counters)


def _mix(state: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))

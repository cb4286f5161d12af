"""Which configurations of the density's two heavy kernels exist, and which of them fit a device."""

import math
from collections.abc import Sequence

from psaq_kernels.density_layout import LayerShape
from psaq_kernels.devices import DeviceLimits
from psaq_kernels.tunable import Config, MachineRates, Problem

EXACT, THREEFOLD = "ieee", "tf32x3"  # float32 products, or as many digits from three TF32 ones on tensor cores

# BLOCK_M, BLOCK_N, BLOCK_D, precision, warps
COUNT_TILES = (
    (64, 64, 32, EXACT, 8),
    (64, 64, 16, EXACT, 4),
    (64, 64, 16, THREEFOLD, 8),
    (64, 64, 16, THREEFOLD, 4),
    (64, 32, 32, EXACT, 4),
    (64, 32, 32, THREEFOLD, 4),
    (64, 32, 32, THREEFOLD, 8),
    (32, 32, 32, EXACT, 4),
    (32, 32, 32, THREEFOLD, 4),
    (128, 64, 32, EXACT, 8),
    (16, 16, 32, THREEFOLD, 2),
)
# BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_E, precision, warps
GRADIENT_TILES = (
    (32, 32, 32, 64, EXACT, 4),
    (32, 32, 32, 64, THREEFOLD, 4),
    (32, 32, 32, 64, THREEFOLD, 8),
    (64, 32, 32, 64, THREEFOLD, 8),
    (64, 32, 16, 64, THREEFOLD, 4),
    (64, 32, 16, 64, EXACT, 4),
    (64, 32, 32, 64, EXACT, 8),
    (32, 32, 32, 32, THREEFOLD, 4),
    (32, 32, 32, 32, EXACT, 4),
    (16, 32, 32, 64, THREEFOLD, 4),
    (32, 32, 32, 128, THREEFOLD, 8),
    (32, 32, 32, 128, EXACT, 8),
)
FLOAT_BYTES = 4


def density_problem(shapes: Sequence[LayerShape], dtype: str) -> Problem:
    """What a configuration may depend on: the largest sizes over the layers of one call."""
    return {
        "layers": len(shapes),
        "images": shapes[0].images,
        "windows": max(shape.windows for shape in shapes),
        "patches": max(shape.patches for shape in shapes),
        "channels": max(shape.channels for shape in shapes),
        "dtype": dtype,
    }


def problem_shapes(problem: Problem) -> tuple[LayerShape, ...]:
    """Layers that present ``problem``, all alike."""
    sizes = [int(problem[name]) for name in ("images", "windows", "patches", "channels")]
    return (LayerShape(*sizes),) * int(problem["layers"])


def bucket(problem: Problem) -> str:
    """Patches and channels by their power of two, work (pairs of all layers and images) by its power of four."""
    patches, channels = (2 ** math.ceil(math.log2(int(problem[name]))) for name in ("patches", "channels"))
    pairs = int(problem["layers"]) * problem_shapes(problem)[0].samples * int(problem["images"])
    return f"{problem['dtype']} patches≤{patches} channels≤{channels} pairs≤4^{math.ceil(math.log2(pairs) / 2)}"


def default(problem: Problem, limits: DeviceLimits, gradient: bool) -> Config:
    """Small tiles, which fit every device."""
    precision = EXACT if limits.is_amd else THREEFOLD
    return _gradient(32, 32, 32, 64, precision, 4) if gradient else _count(32, 32, 32, precision, 4)


def candidates(problem: Problem, limits: DeviceLimits, gradient: bool) -> list[Config]:
    """The configurations that fit ``limits``, the default first."""
    every = [_gradient(*tile) for tile in GRADIENT_TILES] if gradient else [_count(*tile) for tile in COUNT_TILES]
    first = default(problem, limits, gradient)
    return [first, *(config for config in every if config != first and _fits(config, limits))]


def bound(problem: Problem, rates: MachineRates, gradient: bool) -> float:
    """The larger of the time to move the features once and the time of the products."""
    shape = problem_shapes(problem)[0]
    layers, products = int(problem["layers"]), 2 if gradient else 0.5
    moved = layers * shape.elements * FLOAT_BYTES * (3 if gradient else 1)
    flops = products * 2 * layers * shape.images * shape.samples * shape.channels
    return max(moved / rates.bytes_per_second, flops / rates.flops_per_second["float32"])


def _count(m: int, n: int, d: int, precision: str, warps: int) -> Config:
    return Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_D": d, "PRECISION": precision}, warps, num_stages=1)


def _gradient(m: int, n: int, d: int, e: int, precision: str, warps: int) -> Config:
    constants: dict[str, int | str] = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_D": d, "BLOCK_E": e, "PRECISION": precision}
    return Config(constants, warps, num_stages=1)


def _fits(config: Config, limits: DeviceLimits) -> bool:
    """Whether threads, shared memory for the products' operands, and the precision suit the device."""
    m, n, d, e = (int(config.constants.get(name, 0)) for name in ("BLOCK_M", "BLOCK_N", "BLOCK_D", "BLOCK_E"))
    shared = FLOAT_BYTES * max((m + n) * d, (m + e) * n)
    precise = config.constants["PRECISION"] == EXACT or not limits.is_amd
    return precise and config.num_warps <= limits.max_warps and shared <= limits.shared_bytes

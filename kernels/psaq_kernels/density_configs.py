"""How the density's kernels may be launched, which of the ways fit a device, and what the work costs at least."""

import math
from collections.abc import Sequence

from psaq_kernels.density_cells import Cells
from psaq_kernels.density_layout import LayerShape
from psaq_kernels.devices import TARGETS, DeviceLimits
from psaq_kernels.machine_model import SCALAR_LANES, Model
from psaq_kernels.tunable import Config, Problem

EXACT, THREEFOLD = "ieee", "tf32x3"  # float32 products, or as many digits from three TF32 ones on tensor cores

# BLOCK_M, BLOCK_N, BLOCK_D, precision, warps
COUNT_TILES = (
    (64, 64, 32, EXACT, 8),
    (64, 64, 16, EXACT, 4),
    (64, 64, 16, THREEFOLD, 8),
    (64, 64, 16, THREEFOLD, 4),
    (64, 32, 16, EXACT, 4),
    (64, 32, 32, THREEFOLD, 4),
    (64, 32, 32, THREEFOLD, 8),
    (32, 32, 16, EXACT, 4),
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
    (64, 32, 32, 64, EXACT, 8),
    (32, 32, 32, 32, THREEFOLD, 8),  # four warps spill on sm_90 by Triton 3.7
    (32, 32, 32, 32, EXACT, 4),
    (16, 32, 32, 64, THREEFOLD, 4),
    (32, 32, 32, 128, THREEFOLD, 8),
)
CENTER_TILE = 2048  # entries
FLOAT_BYTES = 4
PAIR_STEPS = 12  # from a distance to its cell, or to half of a look-up
MODEST = TARGETS["sm_86"]  # whatever fits it fits all


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
    pairs = _pairs(problem)
    return f"{problem['dtype']} patches≤{patches} channels≤{channels} pairs≤4^{math.ceil(math.log2(pairs) / 2)}"


# Configurations, the default first: it fits every device --------------------------------------------------------------


def center_configs(problem: Problem, limits: DeviceLimits) -> list[Config]:
    """One, whose tile holds whole patches: the launch is a small part of the time. By what compiling has shown, four
    warps spill a little at the narrowest and the widest tiles."""
    channels = max(16, 2 ** math.ceil(math.log2(int(problem["channels"]))))
    rows = max(2, CENTER_TILE // channels)
    return [Config({"BLOCK_M": rows, "BLOCK_D": channels}, 4 if 64 <= channels < 1024 else 8, num_stages=1)]


def count_configs(problem: Problem, limits: DeviceLimits) -> list[Config]:
    default = _count(32, 32, 16, EXACT, 4) if limits.is_amd else _count(32, 32, 32, THREEFOLD, 4)
    return [default, *_others([_count(*tile) for tile in COUNT_TILES], default, problem, limits)]


def smooth_configs(problem: Problem, limits: DeviceLimits) -> list[Config]:
    tiles = ((16, 64, 4), (16, 32, 2), (32, 32, 4), (8, 64, 2))
    return [Config({"BLOCK_G": points, "BLOCK_C": cells}, warps, num_stages=1) for points, cells, warps in tiles]


def table_configs(problem: Problem, limits: DeviceLimits) -> list[Config]:
    tiles = ((32, 16, 4), (32, 32, 4), (64, 16, 4), (16, 16, 2))
    return [Config({"BLOCK_V": nodes, "BLOCK_G": points}, warps, num_stages=1) for nodes, points, warps in tiles]


def gradient_configs(problem: Problem, limits: DeviceLimits) -> list[Config]:
    precision = EXACT if limits.is_amd else THREEFOLD
    default = _gradient(32, 32, 16 if int(problem["channels"]) % 8 else 32, 64, precision, 4)
    return [default, *_others([_gradient(*tile) for tile in GRADIENT_TILES], default, problem, limits)]


def _count(m: int, n: int, d: int, precision: str, warps: int) -> Config:
    return Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_D": d, "PRECISION": precision}, warps, num_stages=1)


def _gradient(m: int, n: int, d: int, e: int, precision: str, warps: int) -> Config:
    constants: dict[str, int | str] = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_D": d, "BLOCK_E": e, "PRECISION": precision}
    return Config(constants, warps, num_stages=1)


def _others(configs: list[Config], default: Config, problem: Problem, limits: DeviceLimits) -> list[Config]:
    """What fits; nothing for channels whose loads do not align, which take too many registers in larger tiles."""
    if int(problem["channels"]) % 16:
        return []
    return [config for config in configs if config != default and _fits(config, limits)]


def _fits(config: Config, limits: DeviceLimits) -> bool:
    """Whether threads, shared memory for the products' operands, and the precision suit the device."""
    m, n, d, e = (int(config.constants.get(name, 0)) for name in ("BLOCK_M", "BLOCK_N", "BLOCK_D", "BLOCK_E"))
    shared = FLOAT_BYTES * max((m + n) * d, (m + e) * n)
    precise = config.constants["PRECISION"] == EXACT or not limits.is_amd
    return precise and config.num_warps <= limits.max_warps and shared <= limits.shared_bytes


# By the model of the machine ------------------------------------------------------------------------------------------


def center_reckoned(config: Config, problem: Problem, model: Model) -> float:
    return model.stream(2 * _feature_bytes(problem))


def count_reckoned(config: Config, problem: Problem, model: Model) -> float:
    """Padded tiles on and right of the diagonal."""
    m, n, _ = _tile(config)
    patches = int(problem["patches"])
    blocks = math.ceil(patches / m)
    columns = sum(math.ceil((patches - first * m) / n) for first in range(blocks)) / blocks
    clocks = columns * m * n * (int(problem["channels"]) / _products(config, model) + PAIR_STEPS / SCALAR_LANES)
    return model.in_turns(_windows(problem) * blocks, clocks)


def grid_reckoned(config: Config, problem: Problem, model: Model) -> float:
    """Tiles of a few exponentials each: of all sizes that there are, none can be told to lose."""
    return model.stream(8.0 * _histograms(problem) * Cells(0.01).count)


def gradient_reckoned(config: Config, problem: Problem, model: Model) -> float:
    """Distances, a look-up for each, and the product with the channels of a part."""
    m, n, part = _tile(config)
    patches, channels = int(problem["patches"]), int(problem["channels"])
    blocks, columns = math.ceil(patches / m), math.ceil(patches / n)
    per_pair = (channels + part) / _products(config, model) + 2 * PAIR_STEPS / SCALAR_LANES
    return model.in_turns(_windows(problem) * blocks * math.ceil(channels / part), columns * m * n * per_pair)


def _tile(config: Config) -> tuple[int, int, int]:
    """Patches, other patches, and channels of the gradient."""
    m, n, e = (int(config.constants.get(name, 0)) for name in ("BLOCK_M", "BLOCK_N", "BLOCK_E"))
    return m, n, e


def _products(config: Config, model: Model) -> float:
    return model.exact_products if config.constants["PRECISION"] == EXACT else model.threefold_products


def _windows(problem: Problem) -> int:
    return _histograms(problem) * int(problem["windows"])


# The least cost: bytes moved, floating-point operations ---------------------------------------------------------------


def center_cost(problem: Problem) -> tuple[float, float]:
    return 2 * _feature_bytes(problem), 0.0


def count_cost(problem: Problem) -> tuple[float, float]:
    """Every pair once."""
    return _feature_bytes(problem), _pairs(problem) * int(problem["channels"])


def smooth_cost(problem: Problem) -> tuple[float, float]:
    """The cells of a bandwidth of 0.01, as counted and as cleared before."""
    return _histograms(problem) * 2 * 8 * Cells(0.01).count, 0.0


def table_cost(problem: Problem) -> tuple[float, float]:
    return _histograms(problem) * 8 * 16 * 2 / 0.01, 0.0


def gradient_cost(problem: Problem) -> tuple[float, float]:
    """Offsets and features read, the gradient written; two products."""
    return 3 * _feature_bytes(problem), 4 * _pairs(problem) * int(problem["channels"])


def _histograms(problem: Problem) -> int:
    return int(problem["layers"]) * int(problem["images"])


def _pairs(problem: Problem) -> int:
    return _histograms(problem) * problem_shapes(problem)[0].samples


def _feature_bytes(problem: Problem) -> int:
    return int(problem["layers"]) * problem_shapes(problem)[0].elements * FLOAT_BYTES

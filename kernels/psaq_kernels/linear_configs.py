"""Which tiles the quantised linear layer may be launched with, and which it takes where nothing was tuned."""

import torch

from psaq_kernels.devices import DeviceLimits
from psaq_kernels.levels import PerTensor, PerToken
from psaq_kernels.machine_model import L2_BYTES, SCALAR_LANES, Model
from psaq_kernels.packing import QuantizedWeight, group_count, row_length
from psaq_kernels.tunable import Config, MachineRates, Problem, Workload

ENOUGH_BLOCKS = 128  # about one for each multiprocessor of a large GPU
DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int8: "i8"}
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "i8": 1}

_TILES = ((128, 256, 8), (128, 128, 8), (128, 128, 4), (64, 128, 4), (64, 64, 4), (32, 64, 4))  # M, N, warps
_DEPTHS = ((128, 3), (64, 4))  # BLOCK_K, stages
_SPLITS = (1, 2, 4)
_AMD_STAGES = 3  # with four, Triton 3.6 breaks down where x is quantised beside rows that are unpacked
_GROUP_M = 8
_HOPPER = "sm_90"
CONVERSION_STEPS = 6  # to scale, round, clamp and shrink a value, or to unpack one
_MODEL_VARIANTS = (
    ("i8", "tensor", 0, 0),
    ("i8", "tensor", 1, 0),
    ("bf16", "tensor", 0, 0),
    ("bf16", "tensor", 1, 0),
    ("bf16", "token", 0, 0),
    ("i8", "tensor", 1, 64),
)
"""x's dtype, its scale, whether weights are packed and in which groups, as deployed models have them; and per token."""


def problem_of(
    x: torch.Tensor, weight: QuantizedWeight, input: PerTensor | PerToken, dtype: torch.dtype
) -> dict[str, int | str]:
    """What a configuration may depend on."""
    return {
        "rows": x.shape[0],
        "outputs": weight.outputs,
        "inputs": weight.inputs,
        "x": DTYPES[x.dtype],
        "scale": "token" if isinstance(input, PerToken) else "tensor",
        "packed": int(weight.packed),
        "group": weight.group or 0,
        "out": DTYPES[dtype],
    }


def problems(workload: Workload) -> list[Problem]:
    """Each linear layer with bfloat16 or ready levels coming in, static or per token, 8-bit or 4-bit weights."""
    return [
        {
            **{"rows": rows, "outputs": outputs, "inputs": inputs, "x": x, "scale": scale},
            **{"packed": packed, "group": group, "out": "bf16"},
        }
        for rows, outputs, inputs in dict.fromkeys(workload.linears)
        for x, scale, packed, group in _MODEL_VARIANTS
    ]


def bucket(problem: Problem) -> str:
    """Rows to the next power of two, x by its bytes; the output's type costs too little to matter."""
    rows = 1 << max(int(problem["rows"]) - 1, 15).bit_length()
    names = ("outputs", "inputs", "packed", *(("group",) if problem["group"] else ()))
    exact = "-".join(f"{name}{problem[name]}" for name in names)
    return f"rows{rows}-{exact}-x{BYTES[str(problem['x'])]}-{problem['scale']}"


def default(problem: Problem, limits: DeviceLimits) -> Config:
    """The largest tile of which every multiprocessor gets one; where none is so small, inputs are split."""
    fitting = [config for config in _all_configs(problem, limits) if fits(config, problem, limits)]
    preferred = [config for config in fitting if config.constants["QUANTIZE_FIRST"] == _quantize_first(config, problem)]
    chosen = preferred or fitting
    return next((config for config in chosen if _blocks(config, problem) >= ENOUGH_BLOCKS), chosen[-1])


def candidates(problem: Problem, limits: DeviceLimits) -> list[Config]:
    """All configurations that fit the device."""
    return [config for config in _all_configs(problem, limits) if fits(config, problem, limits)]


def fits(config: Config, problem: Problem, limits: DeviceLimits) -> bool:
    """Whether a block has the shared memory, the threads and (by what compiling has shown) the registers for it."""
    threads = config.num_warps * limits.warp_size
    block_m, block_n, block_k = _block(config)
    converted = 32 if _is_blackwell(limits) else 64  # values of x per thread, where it is quantised on the way
    return (
        shared_bytes(config, problem) <= limits.shared_bytes
        and config.num_warps <= limits.max_warps
        and block_m * block_n <= threads * _accumulators(config, problem, limits)
        and not (_x_bytes(config, problem) > 1 and block_m * block_k > threads * converted)
        and not (limits.capability != _HOPPER and _is_crowded(config, problem, limits))
    )


def _is_blackwell(limits: DeviceLimits) -> bool:
    """Whose compiler, in some versions, spills where others do not."""
    return not limits.is_amd and limits.capability.startswith("sm_1")


def _is_crowded(config: Config, problem: Problem, limits: DeviceLimits) -> bool:
    """Whether tensor cores that read registers leave too few for unpacking weights in long steps, or for unpacking or,
    by some compilers, quantising beside split sums."""
    is_split, unpacks = int(config.constants["SPLIT_K"]) > 1, bool(problem["packed"])
    quantises = _is_blackwell(limits) and _x_bytes(config, problem) > 1
    in_long_steps = unpacks and _block(config)[2] > 64 and not problem["group"]
    return in_long_steps or (is_split and (unpacks or quantises))


def _accumulators(config: Config, problem: Problem, limits: DeviceLimits) -> int:
    """Per thread. Hopper's tensor cores read both factors from shared memory, others' take registers for them, and
    so do masks and rows that are not aligned to 16 bytes; beside all of these, the offsets of split sums."""
    if problem["group"]:  # beside the sums of a group, those of all before
        return _without_groups(config, {**problem, "group": 0}, limits) // 2
    return _without_groups(config, problem, limits)


def _without_groups(config: Config, problem: Problem, limits: DeviceLimits) -> int:
    if int(config.constants["SPLIT_K"]) > 1 and limits.capability != _HOPPER:
        return 16 if _is_blackwell(limits) else 32
    if _is_blackwell(limits) and _x_bytes(config, problem) > 1:
        return 32
    aligned = weight_length(problem) % 16 == 0 and int(problem["outputs"]) % 16 == 0
    easy = limits.capability == _HOPPER and aligned and is_whole(problem, config) and _block(config)[2] >= 64
    return 128 if easy else 64


def shared_bytes(config: Config, problem: Problem) -> int:
    """What the stages of the pipeline hold: a tile of the weight, and one of x, or two where rows are packed."""
    block_m, block_n, block_k = _block(config)
    x_tiles = 2 if problem["packed"] and not problem["group"] else 1
    return config.num_stages * block_k * (block_n + block_m * _x_bytes(config, problem) * x_tiles)


def bound(problem: Problem, rates: MachineRates) -> float:
    """Seconds: the greater of the traffic's and the products' least time."""
    rows, outputs, inputs = (int(problem[name]) for name in ("rows", "outputs", "inputs"))
    weight_bytes = outputs * weight_length(problem)
    traffic = rows * inputs * BYTES[str(problem["x"])] + weight_bytes + rows * outputs * BYTES[str(problem["out"])]
    return max(traffic / rates.bytes_per_second, 2 * rows * outputs * inputs / rates.flops_per_second["int8"])


def reckon(config: Config, problem: Problem, limits: DeviceLimits) -> float:
    """Seconds by the model of the machine: the launches, the passes of their own, and the tiles in turns."""
    model = Model.of(limits)
    rows, outputs, inputs = (int(problem[name]) for name in ("rows", "outputs", "inputs"))
    splits, read = int(config.constants["SPLIT_K"]), BYTES[str(problem["x"])]
    tiles = model.in_turns(_blocks(config, problem), _tile_clocks(config, problem, model) * inputs / splits)
    levels = model.stream(rows * inputs * (read + 1)) if config.constants["QUANTIZE_FIRST"] else 0.0
    sums = model.stream(rows * outputs * 8 * splits) if splits > 1 else 0.0  # int32, written and read
    return tiles + levels + sums


def _tile_clocks(config: Config, problem: Problem, model: Model) -> float:
    """Of a multiprocessor, for one input of a tile: what takes longest of products, loads and conversions."""
    block_m, block_n, _ = _block(config)
    read = _x_bytes(config, problem)
    converted = (block_m if read > 1 else 0) + (block_n if problem["packed"] else 0)
    magnitudes = block_m * read if problem["scale"] == "token" and read > 1 else 0  # a pass of its own
    loads = (block_m * read + block_n / (1 + int(problem["packed"]))) / L2_BYTES
    products, conversions = block_m * block_n / model.int8_products, converted * CONVERSION_STEPS / SCALAR_LANES
    return magnitudes / L2_BYTES + max(products, loads, conversions)


def weight_length(problem: Problem) -> int:
    """Bytes to a row of the weight."""
    return row_length(int(problem["inputs"]), bool(problem["packed"]), _group(problem))


def _group(problem: Problem) -> int | None:
    return int(problem["group"]) or None


def is_whole(problem: Problem, config: Config) -> bool:
    """Whether no step along the inputs needs a mask."""
    if problem["group"]:
        return int(problem["inputs"]) % int(problem["group"]) == 0
    even = not problem["packed"] or int(problem["inputs"]) % 2 == 0
    return even and weight_length(problem) % int(config.constants["BLOCK_K"]) == 0


def example(
    problem: Problem, device: torch.device
) -> tuple[torch.Tensor, QuantizedWeight, PerTensor | PerToken, torch.Tensor]:
    """Tensors of the problem's shapes to be timed on: x, the weight, how x is quantised, and where to write."""
    dtypes = {name: dtype for dtype, name in DTYPES.items()}
    rows, outputs, inputs = (int(problem[name]) for name in ("rows", "outputs", "inputs"))
    x = torch.randn(rows, inputs, device=device).mul_(20).to(dtypes[str(problem["x"])])
    kind = torch.uint8 if problem["packed"] else torch.int8
    values = torch.randint(-128, 128, (outputs, weight_length(problem)), dtype=torch.int8, device=device).view(kind)
    group = _group(problem)
    shape = (outputs,) if group is None else (outputs, group_count(inputs, group))
    sums = torch.zeros(shape, dtype=torch.int32, device=device)  # not theirs, and as fast
    scale = torch.full(shape, 0.01, device=device)
    weight = QuantizedWeight(values, scale, sums, inputs, trusted=True, group=group)
    input = PerToken() if problem["scale"] == "token" else PerTensor(1.0, zero_point=128)
    return x, weight, input, torch.empty(rows, outputs, dtype=dtypes[str(problem["out"])], device=device)


def _all_configs(problem: Problem, limits: DeviceLimits) -> list[Config]:
    """Every configuration that computes the problem, the largest tiles first."""
    length = weight_length(problem)
    return [
        Config(
            {
                "BLOCK_M": block_m,
                "BLOCK_N": block_n,
                "BLOCK_K": block_k,
                "GROUP_M": _GROUP_M,
                "SPLIT_K": split,
                "QUANTIZE_FIRST": quantize_first,
            },
            warps,
            min(stages, _AMD_STAGES) if limits.is_amd else stages,
        )
        for block_m, block_n, warps in _TILES
        for split in ((1,) if problem["group"] else _SPLITS)  # floats are added in order
        for block_k, stages in _depths(length, int(problem["group"]))
        for quantize_first in ((0,) if problem["x"] == "i8" else (0, 1))
        if _sensible(problem, block_m, length // block_k, split, quantize_first)
    ]


def _depths(length: int, group: int) -> list[tuple[int, int]]:
    """Steps along the inputs that leave no remainder, the smallest where all do; of groups, one after the other."""
    if group:
        return [(group, 3 if group > 64 else 4)]
    whole = [(block_k, stages) for block_k, stages in _DEPTHS if length % block_k == 0]
    return whole or [(32, 4) if length % 32 == 0 or length < 64 else (64, 4)]


def _sensible(problem: Problem, block_m: int, steps: int, split: int, quantize_first: int) -> bool:
    """Split sums only where tiles are small already and long, and per token only where the scales are known."""
    if split == 1:
        return True
    scales_known = problem["scale"] == "tensor" or bool(quantize_first)
    return scales_known and block_m <= 64 and steps >= 4 * split and int(problem["rows"]) <= 2048


def _quantize_first(config: Config, problem: Problem) -> int:
    """Each column of tiles quantises x again, and per token reads it twice: a pass of its own pays beyond a few."""
    columns = -(-int(problem["outputs"]) // int(config.constants["BLOCK_N"]))
    worthwhile = columns > (2 if problem["scale"] == "token" else 6) or int(config.constants["SPLIT_K"]) > 1
    return int(problem["x"] != "i8" and worthwhile)


def _blocks(config: Config, problem: Problem) -> int:
    """How many thread blocks a launch has."""
    block_m, block_n, _ = _block(config)
    tiles = -(-int(problem["rows"]) // block_m) * -(-int(problem["outputs"]) // block_n)
    return tiles * int(config.constants["SPLIT_K"])


def _block(config: Config) -> tuple[int, int, int]:
    """Rows, outputs and inputs of a tile."""
    block_m, block_n, block_k = (int(config.constants[name]) for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
    return block_m, block_n, block_k


def _x_bytes(config: Config, problem: Problem) -> int:
    return 1 if config.constants["QUANTIZE_FIRST"] else BYTES[str(problem["x"])]

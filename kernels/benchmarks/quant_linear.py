"""The integer linear layer beside float matmuls, on the layer shapes of ViT-B, DeiT-S and Swin-T.

    python kernels/benchmarks/quant_linear.py                  # CSV and roofline plot, kernels/benchmarks/results
    python kernels/benchmarks/quant_linear.py --images 1 8 --models vit_base

On a GPU: bfloat16 by cuBLAS, torch._int_mm with a compiled epilogue, torchao's dynamic int8 layer where it is
installed, and this operation (W8A8 and W4A8; static, per token, and on levels that the layer before emitted).
On a CPU: float32 and bfloat16, torch._int_mm with an eager epilogue, and this operation.
"""

import argparse
import csv
import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from psaq_kernels import PerTensor, PerToken, QuantizedWeight, quant_linear

RESULTS = Path(__file__).parent / "results"

# layer, tokens of one image, inputs, outputs
SHAPES = {
    "vit_base": (("qkv", 197, 768, 2304), ("proj", 197, 768, 768), ("fc1", 197, 768, 3072), ("fc2", 197, 3072, 768)),
    "deit_small": (("qkv", 197, 384, 1152), ("proj", 197, 384, 384), ("fc1", 197, 384, 1536), ("fc2", 197, 1536, 384)),
    "swin_tiny": (
        ("qkv, stage 1", 3136, 96, 288),
        ("fc1, stage 1", 3136, 96, 384),
        ("qkv, stage 3", 196, 384, 1152),
        ("fc1, stage 3", 196, 384, 1536),
        ("fc2, stage 4", 49, 3072, 768),
    ),
}

INT8_PEAKS = {"H200": 1979, "H100": 1979, "A100": 624, "L40": 362, "RTX 4090": 661}
"""Dense tera-operations per second by part of the device's name, from the makers' data sheets."""

INPUT = PerTensor(0.02, 117)


@dataclass(frozen=True)
class Machine:
    """What the device can do: measured copy bandwidth, and its int8 rate (data sheet, else a large torch._int_mm)."""

    device: str
    bytes_per_second: float
    int8_per_second: float


@dataclass(frozen=True)
class Row:
    """One measurement. Fractions compare with the int8 peak and with the least time that it and the traffic allow."""

    model: str
    layer: str
    images: int
    rows: int
    inputs: int
    outputs: int
    variant: str
    median_us: float
    p20_us: float
    p80_us: float
    tera_ops: float
    of_int8_peak: float
    of_bound: float
    ops_per_byte: float


# What is compared ---------------------------------------------------------------------------------------------


def variants(x: Float[Tensor, "rows inputs"], outputs: int) -> Iterator[tuple[str, Callable[[], Tensor], float]]:
    """(name, run, bytes to a weight) for every contender on this device."""
    weight = torch.randn(outputs, x.shape[1], dtype=x.dtype, device=x.device)
    bias = torch.randn(outputs, device=x.device)
    cast = bias.to(x.dtype)
    yield str(x.dtype).removeprefix("torch."), lambda: F.linear(x, weight, cast), x.dtype.itemsize
    if x.dtype == torch.float32:
        half, half_weight, half_bias = x.bfloat16(), weight.bfloat16(), bias.bfloat16()
        yield "bfloat16", lambda: F.linear(half, half_weight, half_bias), 2
    yield "int_mm + epilogue", _int_mm(x, outputs, bias), 1
    if x.is_cuda and importlib.util.find_spec("torchao"):
        yield "torchao dynamic int8", _torchao(x, outputs), 1
    levels = torch.randint(-128, 128, x.shape, dtype=torch.int8, device=x.device)
    for bits in (8, 4):
        w = random_weight(outputs, x.shape[1], bits, x.device)
        for name, data, input in (("static", x, INPUT), ("per token", x, PerToken()), ("levels", levels, INPUT)):
            yield f"W{bits}A8 {name}", _ours(data, w, input, bias, x.dtype), bits / 8


def random_weight(outputs: int, inputs: int, bits: int, device: torch.device) -> QuantizedWeight:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    integers = torch.randint(low, high, (outputs, inputs), dtype=torch.int8, device=device)
    return QuantizedWeight.from_integers(integers, torch.full((outputs,), 0.01, device=device), bits)


def _ours(
    x: Tensor, weight: QuantizedWeight, input: PerTensor | PerToken, bias: Tensor, dtype: torch.dtype
) -> Callable[[], Tensor]:
    return lambda: quant_linear(x, weight, input, bias, dtype=dtype)


def _int_mm(x: Tensor, outputs: int, bias: Tensor) -> Callable[[], Tensor]:
    """Quantise, torch._int_mm, scale: what one writes without a kernel; compiled on a GPU."""
    weight = torch.randint(-128, 128, (outputs, x.shape[1]), dtype=torch.int8, device=x.device)
    scale = torch.full((outputs,), 0.01, device=x.device)

    def run(x: Tensor) -> Tensor:
        levels = (x.float() * (1 / INPUT.scale)).round().clamp(-128, 127).to(torch.int8)
        return (torch._int_mm(levels, weight.t()).float() * scale + bias).to(x.dtype)

    compiled = torch.compile(run) if x.is_cuda else run
    return lambda: compiled(x)


def _torchao(x: Tensor, outputs: int) -> Callable[[], Tensor]:
    torchao = importlib.import_module("torchao.quantization")
    layer = torch.nn.Sequential(torch.nn.Linear(x.shape[1], outputs, dtype=x.dtype, device=x.device))
    torchao.quantize_(layer, torchao.Int8DynamicActivationInt8WeightConfig())
    compiled = torch.compile(layer)
    return lambda: compiled(x)


# Measuring ----------------------------------------------------------------------------------------------------


def microseconds(run: Callable[[], object], device: torch.device, repeats: int) -> tuple[float, float, float]:
    """Median, 20th and 80th percentile."""
    if device.type == "cuda":
        from triton.testing import do_bench

        median, p20, p80 = do_bench(run, quantiles=[0.5, 0.2, 0.8])
        return 1e3 * median, 1e3 * p20, 1e3 * p80
    run()
    taken = sorted(_seconds(run) for _ in range(repeats))
    rank = [taken[min(round(part * (repeats - 1)), repeats - 1)] for part in (0.2, 0.8)]
    return 1e6 * statistics.median(taken), 1e6 * rank[0], 1e6 * rank[1]


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measure_machine(device: torch.device, repeats: int) -> Machine:
    source = torch.empty(2**28 if device.type == "cuda" else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.numel() / microseconds(lambda: target.copy_(source), device, repeats)[1] * 1e6
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    peak = next((rate for part, rate in INT8_PEAKS.items() if part in name), None)
    return Machine(name, bandwidth, peak * 1e12 if peak else _int8_rate(device, repeats))


def _int8_rate(device: torch.device, repeats: int) -> float:
    """The best that torch._int_mm reaches on squares, large enough to fill the device."""
    sizes = (768, 1536, 3072) if device.type == "cuda" else (768,)
    return max(_int_mm_rate(size, device, repeats) for size in sizes)


def _int_mm_rate(size: int, device: torch.device, repeats: int) -> float:
    a = torch.randint(-128, 128, (size, size), dtype=torch.int8, device=device)
    return 2 * size**3 / microseconds(lambda: torch._int_mm(a, a.t()), device, repeats)[1] * 1e6


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' * (threads > 1)}"


def measure(
    models: Sequence[str], images: Sequence[int], device: torch.device, repeats: int, machine: Machine
) -> Iterator[Row]:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    cases = [(model, *shape, count) for model in models for count in images for shape in SHAPES[model]]
    for model, layer, tokens, inputs, outputs, count in tqdm(cases, unit="shape"):
        x = torch.randn(count * tokens, inputs, device=device).to(dtype)
        for name, run, weight_bytes in variants(x, outputs):
            times = microseconds(run, device, repeats)
            traffic = x.shape[0] * (inputs * (1 if "levels" in name else x.itemsize) + outputs * x.itemsize)
            yield _row(model, layer, count, x, outputs, name, times, traffic + inputs * outputs * weight_bytes, machine)


def _row(
    model: str,
    layer: str,
    images: int,
    x: Tensor,
    outputs: int,
    variant: str,
    times: tuple[float, float, float],
    traffic: float,
    machine: Machine,
) -> Row:
    rows, inputs = x.shape
    operations = 2 * rows * inputs * outputs
    seconds = times[0] * 1e-6
    bound = max(traffic / machine.bytes_per_second, operations / machine.int8_per_second)
    return Row(
        model,
        layer,
        images,
        rows,
        inputs,
        outputs,
        variant,
        median_us=round(times[0], 2),
        p20_us=round(times[1], 2),
        p80_us=round(times[2], 2),
        tera_ops=round(operations / seconds * 1e-12, 4),
        of_int8_peak=round(operations / seconds / machine.int8_per_second, 4),
        of_bound=round(bound / seconds, 4),
        ops_per_byte=round(operations / traffic, 2),
    )


# Results ------------------------------------------------------------------------------------------------------


def write_csv(path: Path, rows: Sequence[Row], machine: Machine) -> None:
    common = {
        "device": machine.device,
        "gb_per_second": round(machine.bytes_per_second * 1e-9, 1),
        "int8_tera_ops": round(machine.int8_per_second * 1e-12, 3),
        "torch": torch.__version__,
        "triton": _triton_version(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)] + [*common], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**asdict(row), **common} for row in rows)


def plot(path: Path, rows: Sequence[Row], machine: Machine) -> None:
    """Rate over operations per byte, under the roof that bandwidth and int8 peak make."""
    import matplotlib as mpl
    from matplotlib import pyplot

    mpl.use("Agg")
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    intensity = [0.5 * min(row.ops_per_byte for row in rows) * 1.1**step for step in range(100)]
    intensity = [value for value in intensity if value < 2 * max(row.ops_per_byte for row in rows)]
    roof = [min(value * machine.bytes_per_second, machine.int8_per_second) * 1e-12 for value in intensity]
    axes.loglog(intensity, roof, color="0.3", label="roof")
    for variant in dict.fromkeys(row.variant for row in rows):
        points = [(row.ops_per_byte, row.tera_ops) for row in rows if row.variant == variant]
        axes.loglog(*zip(*points, strict=True), "o", markersize=4, alpha=0.8, label=variant)
    axes.set(xlabel="operations per byte", ylabel="TOP/s", title=machine.device)
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        return "absent"
    return triton.__version__


def _slug(device: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in device.lower()).split())


def parse() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    has_gpu = torch.cuda.is_available()
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--images", nargs="+", type=int, default=[1, 8, 32, 128] if has_gpu else [1, 8])
    parser.add_argument("--repeats", type=int, default=7, help="timed runs on a CPU")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = measure_machine(device, options.repeats)
    rows = list(measure(options.models, options.images, device, options.repeats, machine))
    name = f"quant_linear-{_slug(machine.device)}"
    write_csv(options.out / f"{name}.csv", rows, machine)
    plot(options.out / f"{name}.png", rows, machine)
    for row in rows:
        print(
            f"{row.model:<11}{row.layer:<13}{row.images:>4} images  {row.variant:<22}{row.median_us:>10.1f} µs"
            f"{row.tera_ops:>9.3f} TOP/s{100 * row.of_int8_peak:>7.1f} % of peak{100 * row.of_bound:>7.1f} % of bound"
        )


if __name__ == "__main__":
    main()

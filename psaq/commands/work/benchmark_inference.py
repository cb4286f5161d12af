"""``psaq benchmark inference``: the integer model beside float32, bfloat16, compiled ones and other runtimes."""

import copy
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from psaq.commands.benchmark_inference import BenchmarkInference
from psaq.commands.runtimes import Session, installed, products, session
from psaq.images.batches import gaussian_images
from psaq.progress import progress_bar
from psaq.quantization.deployment.deploy import deploy
from psaq.quantization.deployment.integer import IntegerLinear
from psaq.quantization.deployment.onnx_graph import export_float_onnx, export_onnx
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe, parse_precision
from psaq.runs import RunFolder, device_name, versions
from psaq_kernels.processor import BYTE, dot_products, largest_exact_weight

CALIBRATION_IMAGES = 8
"""Of noise: ranges do not change how long a layer takes."""

Run = Callable[[], object]


@dataclass(frozen=True)
class ModelTime:
    """How long one variant of the model takes for a batch."""

    images: int
    variant: str
    milliseconds: float
    images_per_second: float
    speedup: float
    """Over float32."""


@dataclass(frozen=True)
class LayerTime:
    """How long one kind of layer takes, float beside integers. A GELU that the integer layer applies is in both."""

    layer: str
    count: int
    """How many of them the model has."""
    rows: int
    inputs: int
    outputs: int
    float_us: float
    integer_us: float
    speedup: float
    tera_ops: float
    """Integer operations per second, in 10¹²; an addition and a multiplication are two."""


@torch.no_grad()
def run(options: BenchmarkInference) -> None:
    model = options.model.build() if options.random_weights else options.model.load()
    device = next(model.parameters()).device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    recipe = Recipe.paper(*parse_precision(options.precision), scope="linear")
    qmodel = quantize(model, gaussian_images(model, CALIBRATION_IMAGES), recipe)
    variants = _variants(model, qmodel, dtype, options.compiled)
    print(f"{options.model.model} on {device_name(device)}, torch {versions()['torch']}, {options.precision} (linear)")
    sessions: dict[str, Session] = {}
    if options.runtimes or (options.runtimes is None and device.type == "cpu"):
        print(f"8-bit dot products: {', '.join(dot_products()) or 'none'}")
        sessions = _sessions(qmodel)
    kept = {**asdict(options), "out": None}
    folder = None if options.out is None else RunFolder(options.out, "benchmark inference", kept)
    whole = [row for count in options.images for row in _whole(variants, sessions, model, count, options.repeats)]
    print(_model_table(whole))
    layers = {count: _layers(variants, model, dtype, count, options.repeats) for count in options.images}
    for count, rows in layers.items():
        print(_layer_table(rows, count, dtype))
    if folder is not None:
        folder.finish({"whole": whole, "layers": layers})


def _variants(model: nn.Module, qmodel: nn.Module, dtype: torch.dtype, compiled: bool | None) -> dict[str, nn.Module]:
    variants = {"float32": model, "bfloat16": copy.deepcopy(model).bfloat16()}
    variants |= {_integers(kind): deploy(qmodel, kind) for kind in (torch.float32, torch.bfloat16)}
    if compiled or (compiled is None and dtype == torch.bfloat16):
        for name in (_name(dtype), _integers(dtype)):
            variants[f"{name}, compiled"] = torch.compile(variants[name])  # type: ignore[assignment]
    return variants


def _whole(
    variants: Mapping[str, nn.Module], sessions: Mapping[str, Session], model: nn.Module, count: int, repeats: int
) -> list[ModelTime]:
    images = gaussian_images(model, count).to(next(model.parameters()).device)
    runs: dict[str, Run] = {name: _forward(variant, images) for name, variant in variants.items()}
    runs |= {name: partial(session, images.cpu()) for name, session in sessions.items()}
    seconds = medians(runs, repeats, f"{count} images")
    return [
        ModelTime(count, name, 1e3 * taken, count / taken, seconds["float32"] / taken)
        for name, taken in seconds.items()
    ]


def _layers(
    variants: Mapping[str, nn.Module], model: nn.Module, dtype: torch.dtype, count: int, repeats: int
) -> list[LayerTime]:
    images = gaussian_images(model, count).to(next(model.parameters()).device)
    integer = variants[_integers(dtype)].model
    assert isinstance(integer, nn.Module)
    full = variants[_name(dtype)]
    names = [name for name, module in integer.named_modules() if isinstance(module, IntegerLinear)]
    kinds = _by_kind(names)
    first = [members[0] for members in kinds.values()]
    inputs, levels = _inputs(full, first, images.to(dtype)), _inputs(integer, first, images)
    return [
        _layer(kind, len(kinds[kind]), full, integer, name, inputs[name], levels[name], repeats)
        for kind, name in zip(kinds, first, strict=True)
    ]


def _layer(
    kind: str,
    count: int,
    full: nn.Module,
    integer: nn.Module,
    name: str,
    x: Tensor,
    levels: Tensor,
    repeats: int,
) -> LayerTime:
    float_layer, layer = full.get_submodule(name), integer.get_submodule(name)
    assert isinstance(layer, IntegerLinear)
    gelu = nn.functional.gelu if layer.activation else nn.Identity()
    runs = {"float": lambda: gelu(float_layer(x)), "integer": lambda: layer(levels)}
    seconds = medians(runs, repeats, kind)
    outputs, inputs = layer.integers.outputs, layer.inputs
    rows = layer(levels).numel() // outputs
    return LayerTime(
        f"{kind} + {layer.activation}" if layer.activation else kind,
        count,
        rows,
        inputs,
        outputs,
        1e6 * seconds["float"],
        1e6 * seconds["integer"],
        seconds["float"] / seconds["integer"],
        2e-12 * rows * inputs * outputs / seconds["integer"],
    )


def _sessions(qmodel: nn.Module) -> dict[str, Session]:
    """The model in the runtimes that are installed: in float32, and the file of integers that is right on this
    processor; says what of that runs in integers."""
    sessions = {}
    with TemporaryDirectory() as folder:
        full, quantised = Path(folder) / "float.onnx", Path(folder) / "integers.onnx"
        for runtime in installed():
            export_float_onnx(qmodel, full)
            export_onnx(qmodel, quantised, runtime=runtime if largest_exact_weight() == BYTE else None)
            sessions[f"{runtime}, float32"] = session(full, runtime)
            sessions[f"{runtime}, integers"] = session(quantised, runtime)
            found = products(quantised, runtime, gaussian_images(qmodel, 1).cpu())
            print(f"{runtime}: {found.integer} of {found.total} products in integers")
    return sessions


def medians(runs: Mapping[str, Run], repeats: int, description: str) -> dict[str, float]:
    """Seconds that each run takes: one round warms up, then each round times every run once."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    with progress_bar(description=description, total=(repeats + 1) * len(runs), unit="run") as bar:
        for repeat in range(repeats + 1):
            for name, run in runs.items():
                seconds = _timed(run)
                if repeat:
                    taken[name].append(seconds)
                bar.update()
    return {name: statistics.median(times) for name, times in taken.items()}


def _timed(run: Run) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _forward(variant: nn.Module, images: Tensor) -> Run:
    """The integer model reads float32 images; a cast one takes them cast."""
    first = next(variant.parameters()).dtype
    batch = images if hasattr(variant, "simulated") else images.to(first)
    return lambda: variant(batch)


def _by_kind(names: Sequence[str]) -> dict[str, list[str]]:
    """Layers whose names differ only in numbers."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(re.sub(r"\b\d+\b", "*", name), []).append(name)
    return kinds


def _inputs(model: nn.Module, names: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """What reaches each of the named layers in one forward pass."""
    inputs: dict[str, Any] = {}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
        for name in names
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    return inputs


def _integers(dtype: torch.dtype) -> str:
    return f"integers + {_name(dtype)}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _model_table(rows: Sequence[ModelTime]) -> str:
    lines = [f"{'images':>6}  {'variant':<30}{'ms':>10}{'images/s':>11}{'× float32':>11}"]
    for row in rows:
        numbers = f"{row.milliseconds:>10.2f}{row.images_per_second:>11.1f}{row.speedup:>11.2f}"
        lines.append(f"{row.images:>6}  {row.variant:<30}{numbers}")
    return "\n".join(lines)


def _layer_table(rows: Sequence[LayerTime], images: int, dtype: torch.dtype) -> str:
    width = max(len(row.layer) for row in rows)
    head = f"{'rows':>7}{'inputs':>8}{'outputs':>8}{_name(dtype) + ' µs':>13}{'integer µs':>12}{'×':>7}{'TOP/s':>9}"
    lines = [f"\n{images} images", f"{'layer':<{width}}{'':>6}{head}"]
    for row in rows:
        shape = f"{row.rows:>7}{row.inputs:>8}{row.outputs:>8}"
        numbers = f"{row.float_us:>13.1f}{row.integer_us:>12.1f}{row.speedup:>7.2f}{row.tera_ops:>9.3f}"
        lines.append(f"{row.layer:<{width}}{'× ' + str(row.count):>6}{shape}{numbers}")
    return "\n".join(lines)

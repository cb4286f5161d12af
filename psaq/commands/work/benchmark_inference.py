"""What ``psaq benchmark inference`` does."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from psaq.benchmarks.inference import (
    LayerTime,
    ModelTime,
    layer_times,
    model_times,
    name_of,
    runtime_sessions,
    variants_of,
)
from psaq.commands.benchmark_inference import BenchmarkInference
from psaq.errors import PsaqError
from psaq.images.batches import gaussian_images
from psaq.models.place import device_of
from psaq.quantization.deployment.runtimes import Session, installed
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe, parse_precision
from psaq.runs import RunFolder, device_name, versions
from psaq_kernels.processor import dot_products

CALIBRATION_IMAGES = 8
"""Of noise: ranges do not change how long a layer takes."""


@torch.no_grad()
def run(options: BenchmarkInference) -> None:
    model = options.model.build() if options.random_weights else options.model.load()
    device = device_of(model)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    recipe = Recipe.paper(*parse_precision(options.precision), scope="linear")
    qmodel = quantize(model, gaussian_images(model, CALIBRATION_IMAGES), recipe)
    variants = variants_of(model, qmodel, dtype, options.compiled)
    print(f"{options.model.model} on {device_name(device)}, torch {versions()['torch']}, {options.precision} (linear)")
    sessions: dict[str, Session] = {}
    if options.runtimes or (options.runtimes is None and device.type == "cpu"):
        print(f"8-bit dot products: {', '.join(dot_products()) or 'none'}")
        sessions = _sessions(qmodel, asked=options.runtimes is True)
    config = replace(options, out=None)
    folder = None if options.out is None else RunFolder(options.out, "benchmark inference", config, device=device)
    whole = []
    for count in options.images:
        captured = (dtype,) if options.compiled else ()
        whole += model_times(variants, sessions, model, count, options.repeats, captured)
    print(_model_table(whole))
    runs_there = any(row.variant == name_of(dtype) for row in whole)
    if not runs_there:
        print(f"layers left out: the model does not run in {name_of(dtype)}")
    counts = options.images if runs_there else ()
    layers = {count: layer_times(variants, model, dtype, count, options.repeats) for count in counts}
    for count, rows in layers.items():
        print(_layer_table(rows, count, dtype))
    if folder is not None:
        folder.finish({"whole": whole, "layers": layers})


def _sessions(qmodel: nn.Module, asked: bool) -> dict[str, Session]:
    """The runtimes' models; where nobody ``asked`` for them, none of a model that no file holds whole."""
    if asked and not installed():
        raise PsaqError('--runtimes: none is installed; run pip install "psaq[onnx]" or "psaq[openvino]"')
    try:
        return runtime_sessions(qmodel)
    except PsaqError as error:
        if asked:
            raise
        print(f"runtimes left out: {error}")
        return {}


def _model_table(rows: Sequence[ModelTime]) -> str:
    lines = [f"{'images':>6}  {'variant':<30}{'ms':>10}{'images/s':>11}{'× float32':>11}"]
    for row in rows:
        numbers = f"{row.milliseconds:>10.2f}{row.images_per_second:>11.1f}{row.speedup:>11.2f}"
        lines.append(f"{row.images:>6}  {row.variant:<30}{numbers}")
    return "\n".join(lines)


def _layer_table(rows: Sequence[LayerTime], images: int, dtype: torch.dtype) -> str:
    width = max(len(row.layer) for row in rows)
    head = f"{'rows':>7}{'inputs':>8}{'outputs':>8}{name_of(dtype) + ' µs':>13}{'integer µs':>12}{'×':>7}{'TOP/s':>9}"
    lines = [f"\n{images} images", f"{'layer':<{width}}{'':>6}{head}"]
    for row in rows:
        shape = f"{row.rows:>7}{row.inputs:>8}{row.outputs:>8}"
        numbers = f"{row.float_us:>13.1f}{row.integer_us:>12.1f}{row.speedup:>7.2f}{row.tera_ops:>9.3f}"
        lines.append(f"{row.layer:<{width}}{'× ' + str(row.count):>6}{shape}{numbers}")
    return "\n".join(lines)

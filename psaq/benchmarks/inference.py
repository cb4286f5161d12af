"""The integer model beside float32, bfloat16, compiled ones and other runtimes: whole, and layer by layer."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from psaq.benchmarks.timing import Run, medians
from psaq.images.batches import gaussian_images
from psaq.models.copying import copied
from psaq.models.opened import opened
from psaq.models.place import device_of, tensor_of
from psaq.models.transformers_library import first_line
from psaq.progress import note
from psaq.quantization.deployment.capture import capture
from psaq.quantization.deployment.captured import CapturedModel
from psaq.quantization.deployment.deploy import deploy
from psaq.quantization.deployment.integer import IntegerLinear
from psaq.quantization.deployment.onnx_graph import export_float_onnx, export_onnx
from psaq.quantization.deployment.runtimes import Session, installed, products, session, settle
from psaq_kernels.processor import BYTE, largest_exact_weight


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


def variants_of(model: nn.Module, qmodel: nn.Module, dtype: torch.dtype, compiled: bool | None) -> dict[str, nn.Module]:
    """The model in float32, bfloat16 and integers beside either, and where it pays or is asked for, compiled."""
    variants = {"float32": copied(model).float(), "bfloat16": copied(model).bfloat16()}
    variants |= {_integers(kind): deploy(qmodel, kind) for kind in (torch.float32, torch.bfloat16)}
    if compiled or (compiled is None and dtype == torch.bfloat16):
        for name in (name_of(dtype), _integers(dtype)):
            variants[f"{name}, compiled"] = torch.compile(variants[name])  # type: ignore[assignment]
    return variants


def model_times(
    variants: Mapping[str, nn.Module],
    sessions: Mapping[str, Session],
    model: nn.Module,
    count: int,
    repeats: int,
    captured: Sequence[torch.dtype] = (),
) -> list[ModelTime]:
    """How long every variant and every runtime takes for so many images; and, for each type in ``captured``, the
    integer model captured for that batch."""
    images = gaussian_images(model, count).to(device_of(model))
    torch.compiler.reset()  # or it gives up: all models share their code, of which it makes eight versions
    names = map(_integers, captured)
    variants = {**variants, **{f"{name}, captured": capture(variants[name], images) for name in names}}
    runs: dict[str, Run] = {name: _forward(variant, images) for name, variant in variants.items()}
    runs |= {name: partial(session, images.cpu()) for name, session in sessions.items()}
    runs = {name: run for name, run in runs.items() if name == "float32" or _can_run(name, run)}
    seconds = medians(runs, repeats, f"{count} images", settle if sessions else None)
    return [
        ModelTime(count, name, 1e3 * taken, count / taken, seconds["float32"] / taken)
        for name, taken in seconds.items()
    ]


def _can_run(name: str, run: Run) -> bool:
    """Whether a variant runs at all: not all that models call, a detector's choice of boxes, is there in any type."""
    try:
        run()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        note(f"{name} left out: {first_line(error)}")
        return False
    return True


def layer_times(
    variants: Mapping[str, nn.Module], model: nn.Module, dtype: torch.dtype, count: int, repeats: int
) -> list[LayerTime]:
    """How long every kind of layer takes for so many images, float beside integers."""
    images = gaussian_images(model, count).to(device_of(model))
    integer = variants[_integers(dtype)].model
    assert isinstance(integer, nn.Module)
    full = opened(variants[name_of(dtype)])
    names = [name for name, module in integer.named_modules() if isinstance(module, IntegerLinear)]
    kinds = by_kind(names)
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


def runtime_sessions(qmodel: nn.Module) -> dict[str, Session]:
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


def _forward(variant: nn.Module, images: Tensor) -> Run:
    """The integer model reads float32 images; a cast one takes them cast."""
    first = tensor_of(variant).dtype
    in_integers = hasattr(variant, "simulated") or isinstance(variant, CapturedModel)
    batch = images if in_integers else images.to(first)
    return lambda: variant(batch)


def by_kind(names: Sequence[str]) -> dict[str, list[str]]:
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
    return f"integers + {name_of(dtype)}"


def name_of(dtype: torch.dtype) -> str:
    """As torch writes it, without torch."""
    return str(dtype).removeprefix("torch.")

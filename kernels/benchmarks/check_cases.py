"""Every kernel once at real sizes, against float64 or the torch backend; and what the machine has."""

import functools
import itertools
import math
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from findings import Case, Row  # type: ignore[import-not-found]
from measuring import versions  # type: ignore[import-not-found]
from settings import LayerSizes, Settings  # type: ignore[import-not-found]
from torch import Tensor
from torch.nn import functional as F

from psaq_kernels import PerTensor, PerToken, QuantizedWeight, layer_norm_quantize, quant_linear, similarity_density
from psaq_kernels.compiling import compile_before_use

STATIC, NEXT = PerTensor(0.02, 113), PerTensor(0.05, 100)
DENSITY_ERROR, GRADIENT_ERROR = 1e-4, 1e-3  # of the density's peak; relative L2
CHECKED = (0, -1)  # images that are checked: the first and the last
LEVEL_TIES = 1e-3  # of a level: closer to the middle between two, either is right


def cases(rehearse: bool) -> Iterator[Case]:
    settings = Settings(rehearse)
    yield {"what": "machine"}, lambda: machine(settings)
    checks = [*density_checks(settings), *linear_checks(settings), *norm_checks(settings)]
    yield {"what": "compiling"}, lambda: {"kernels": compile_before_use(lambda: _all(run for _, run, _ in checks))}
    for case, run, judge in checks:
        yield case, functools.partial(_judged, run, judge)


def machine(settings: Settings) -> Row:
    if settings.device.type != "cuda":
        return {"device": platform.machine(), "cores": os.cpu_count(), **versions()}
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "cores": os.cpu_count(),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        **versions(),
    }


Check = tuple[Row, Callable[[], Any], Callable[[Any], Row]]  # what is checked, the run, what is said of its result


def _all(runs: Iterator[Callable[[], Any]]) -> None:
    for run in runs:
        run()


def _judged(run: Callable[[], Any], judge: Callable[[Any], Row]) -> Row:
    return judge(run())


# The density ----------------------------------------------------------------------------------------------------------


def density_checks(settings: Settings) -> Iterator[Check]:
    for (model, blocks), dtype in itertools.product(settings.blocks.items(), (torch.float32, settings.half)):
        layers = make_features(blocks, settings, dtype)
        case = {"what": "similarity_density", "shape": model, "dtype": str(dtype).removeprefix("torch.")}
        yield case, functools.partial(_density, layers, settings), functools.partial(_density_errors, layers, settings)


def make_features(blocks: LayerSizes, settings: Settings, dtype: torch.dtype) -> list[Tensor]:
    """Two groups of patches: their similarities are bimodal, as a real image's."""
    generator = torch.Generator().manual_seed(0)
    layers = []
    for windows, patches, channels in blocks:
        centres = torch.randn(settings.images, windows, 2, channels, generator=generator)
        noise = 0.3 * torch.randn(settings.images, windows, patches, channels, generator=generator)
        layer = centres[:, :, torch.arange(patches) % 2] + noise
        layers.append(layer.to(settings.device, dtype).requires_grad_())
    return layers


def grid_of(settings: Settings) -> Tensor:
    reach, h = 1 + 6 * settings.bandwidth, settings.bandwidth
    return torch.linspace(-reach, reach, math.ceil(2.5 * reach / h), device=settings.device)


def _density(layers: Sequence[Tensor], settings: Settings) -> tuple[Tensor, Sequence[Tensor]]:
    grid = grid_of(settings)
    density = similarity_density(layers, grid, settings.bandwidth, backend="triton")
    return density.detach(), torch.autograd.grad((density * torch.sin(3 * grid)).sum(), list(layers))


def _density_errors(layers: Sequence[Tensor], settings: Settings, found: tuple[Tensor, Sequence[Tensor]]) -> Row:
    """Against the definition in float64, forward and backward, the worst of all layers."""
    grid, (density, gradients), worst = grid_of(settings).double(), found, [0.0, 0.0]
    for layer, by_layer, gradient in zip(layers, density, gradients, strict=True):
        for image in CHECKED:
            exact = layer.detach()[image].double().requires_grad_()
            direct = exact_density(exact, grid, settings.bandwidth)
            (right,) = torch.autograd.grad((direct * torch.sin(3 * grid)).sum(), exact)
            worst[0] = max(worst[0], float((by_layer[image] - direct).abs().max() / direct.max()))
            worst[1] = max(worst[1], float((gradient[image] - right).norm() / right.norm()))
    rounded = max(GRADIENT_ERROR, torch.finfo(layers[0].dtype).eps)
    fits = worst[0] < DENSITY_ERROR and worst[1] < rounded
    return {"right": fits, "density_error": f"{worst[0]:.1e}", "gradient_error": f"{worst[1]:.1e}"}


def exact_density(features: Tensor, grid: Tensor, h: float) -> Tensor:
    """Of one image, a window at a time."""
    unit = F.normalize(features, dim=-1, eps=0)
    total = torch.zeros_like(grid)
    for window in unit:
        z = (grid[:, None] - (window @ window.mT).flatten()) / h
        total = total + torch.exp(-z.square() / 2).mean(1)
    return total / (len(unit) * h * math.sqrt(2 * math.pi))


# The linear layer and LayerNorm ---------------------------------------------------------------------------------------


def linear_checks(settings: Settings) -> Iterator[Check]:
    models = ("toy",) if settings.rehearse else ("DeiT-B", "Swin-S")
    layers = [(f"{model} {name}", sizes) for model in models for name, sizes in settings.linears(model).items()]
    for (name, dtype, input, output), bits, (layer, sizes) in itertools.product(_kinds(settings.half), (8, 4), layers):
        case = {"what": "quant_linear", "shape": layer, "kind": f"W{bits}A8 {name}"}
        case["dtype"] = str(dtype).removeprefix("torch.")
        arguments = functools.partial(_linear_arguments, sizes, dtype, bits, settings)
        run = functools.partial(_linear, arguments, input, output, settings.half)
        yield case, functools.partial(run, "triton"), functools.partial(_same_bits, functools.partial(run, "torch"))


Kind = tuple[str, torch.dtype, PerTensor | PerToken, PerTensor | None]  # name, x's type, its grid, the output's


def _kinds(half: torch.dtype) -> tuple[Kind, ...]:
    return (
        ("static", half, STATIC, None),
        ("levels", torch.int8, STATIC, None),
        ("levels to levels", torch.int8, STATIC, NEXT),
        ("per token", half, PerToken(), None),
        ("static", torch.float32, STATIC, None),
    )


def _linear_arguments(
    sizes: tuple[int, int, int], dtype: torch.dtype, bits: int, settings: Settings
) -> tuple[Tensor, QuantizedWeight, Tensor]:
    rows, inputs, outputs = sizes
    generator = torch.Generator(settings.device).manual_seed(0)
    on = {"generator": generator, "device": settings.device}
    x = torch.randn(settings.images * rows, inputs, **on)
    x = (40 * x).clamp(-128, 127).round().to(dtype) if dtype == torch.int8 else x.to(dtype)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    integers = torch.randint(low, high, (outputs, inputs), dtype=torch.int8, **on)
    scale = torch.rand(outputs, **on) * 1e-3 + 1e-5
    return x, QuantizedWeight.from_integers(integers, scale, bits), torch.randn(outputs, **on)


def _linear(
    arguments: Callable[[], tuple[Tensor, QuantizedWeight, Tensor]],
    input: PerTensor | PerToken,
    output: PerTensor | None,
    half: torch.dtype,
    backend: str,
) -> Tensor:
    x, weight, bias = arguments()
    dtype = None if output else half if x.dtype == torch.int8 else x.dtype
    return quant_linear(x, weight, input, bias, output=output, dtype=dtype, backend=backend)


def _same_bits(reference: Callable[[], Tensor], found: Tensor) -> Row:
    expected = reference()
    difference = (found.double() - expected.double()).abs().max()
    return {"right": torch.equal(found, expected), "largest_difference": f"{float(difference):.1e}"}


def norm_checks(settings: Settings) -> Iterator[Check]:
    for dtype, channels in itertools.product((torch.float32, settings.half), (96, 768)):
        case = {"what": "layer_norm_quantize", "shape": channels, "dtype": str(dtype).removeprefix("torch.")}
        x, weight, bias = _norm_arguments(channels, dtype, settings)
        run = functools.partial(layer_norm_quantize, x, weight, bias, STATIC, backend="triton")
        yield case, run, functools.partial(_nearest_levels, x, weight, bias)


def _norm_arguments(channels: int, dtype: torch.dtype, settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(3 if settings.rehearse else 6304, channels, generator=generator) + 5
    weight, bias = torch.rand(channels, generator=generator) + 0.5, torch.randn(channels, generator=generator)
    return x.to(settings.device, dtype), weight.to(settings.device), bias.to(settings.device)


def _nearest_levels(x: Tensor, weight: Tensor, bias: Tensor, levels: Tensor) -> Row:
    exact = F.layer_norm(x.double(), x.shape[-1:], weight.double(), bias.double(), 1e-6)
    exact = (exact / STATIC.scale + STATIC.zero_point).clamp(0, 255) - 128
    off = float((levels.double() - exact).abs().max())
    return {"right": off <= 0.5 + LEVEL_TIES, "largest_difference": f"{off:.4f}"}

"""The integer linear layer at every layer shape of DeiT-B, beside cuBLAS and torch._int_mm with its epilogue."""

import functools
from collections.abc import Callable, Iterator

import quant_linear as benchmark  # type: ignore[import-not-found]
import torch
from findings import Case, Row  # type: ignore[import-not-found]
from settings import Settings, times  # type: ignore[import-not-found]
from torch import Tensor

from psaq_kernels.compiling import compile_before_use


def cases(rehearse: bool, configuration: str) -> Iterator[Case]:
    """First what runs at once, of all batches; then what torch.compile has to compile."""
    settings = Settings(rehearse)
    shapes = [(count, *layer) for count in settings.batches for layer in settings.linears("DeiT-B").items()]
    yield {"configuration": configuration, "what": "compiling"}, lambda: _compile(shapes, settings)
    found = [case for shape in shapes for case in _shape_cases(configuration, settings, *shape)]
    yield from sorted(found, key=lambda case: "int_mm" in case[0]["variant"])


def _shape_cases(
    configuration: str, settings: Settings, count: int, layer: str, sizes: tuple[int, int, int]
) -> Iterator[Case]:
    rows, inputs, outputs = sizes
    for variant in _names(configuration, settings):
        case = {"configuration": configuration, "images": count, "layer": layer, "variant": variant}
        case |= {"rows": count * rows, "inputs": inputs, "outputs": outputs}
        yield case, functools.partial(_time, settings, count * rows, inputs, outputs, variant)


def _variants(settings: Settings, rows: int, inputs: int, outputs: int) -> dict[str, Callable[[], Tensor]]:
    torch.manual_seed(0)
    dtype = torch.float32 if settings.rehearse else torch.bfloat16
    x = torch.randn(rows, inputs, device=settings.device).to(dtype)
    return {name: run for name, run, _ in benchmark.variants(x, outputs)}


def _names(configuration: str, settings: Settings) -> list[str]:
    """The peers depend on no table."""
    names = list(_variants(settings, 17, 16, 16))
    return [name for name in names if name.startswith("W")] if configuration == "tuned" else names


def _compile(shapes: list[tuple[int, str, tuple[int, int, int]]], settings: Settings) -> Row:
    def run() -> None:
        for count, _, (rows, inputs, outputs) in shapes:
            for name, variant in _variants(settings, count * rows, inputs, outputs).items():
                if name.startswith("W"):
                    variant()

    return {"kernels": compile_before_use(run)}


def _time(settings: Settings, rows: int, inputs: int, outputs: int, variant: str) -> Row:
    torch.compiler.reset()  # beyond some shapes of one function it would give up compiling
    found: Row = times(_variants(settings, rows, inputs, outputs)[variant], settings.device)
    operations = 2 * rows * inputs * outputs
    return found | {"tera_ops": round(1e-6 * operations / found["median_us"], 3)}

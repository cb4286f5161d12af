"""How fast models of 8 and 4 bits are on a CPU: psaq's in torch, onnxruntime, OpenVINO beside float, NNCF and torchao.

python -m psaq.experiments.cpu_speed

Weights are random, since no time depends on them. Needs psaq[onnx,openvino], nncf and torchao. All of a model is
timed in turns, in one run.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import timm
import torch
from torch import Tensor, nn

from psaq.benchmarks.inference import model_times, variants_of
from psaq.errors import PsaqError
from psaq.experiments.nncf_file import nncf_file
from psaq.experiments.rows import read_rows, write_rows
from psaq.images.batches import gaussian_images
from psaq.program import run_command
from psaq.quantization.deployment.onnx_graph import export_float_onnx, export_onnx
from psaq.quantization.deployment.runtimes import ONNXRUNTIME, OPENVINO, Session, products, session
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe, parse_precision
from psaq.runs import device_name, versions
from psaq_kernels.processor import dot_products

_CALIBRATION_IMAGES = 8
_TIMED = 80
"""Images that all timed rounds have together, of which there are four at least."""


@dataclass(frozen=True)
class Row:
    """A model in one form and runtime."""

    model: str
    precision: str
    """psaq's; those of others have 8 bits."""
    images: int
    """In a batch."""
    variant: str
    milliseconds: float
    """The median of a batch's."""
    speedup: float
    """Over torch's float32, eager."""
    integer_products: str
    """Of all, where a runtime tells."""
    processor: str
    dot_products: str
    versions: str


@dataclass(frozen=True)
class CpuSpeed:
    """Time DeiTs on this processor; started again, time only what is missing."""

    models: tuple[str, ...] = ("deit_tiny_patch16_224", "deit_base_patch16_224")
    """timm's names."""
    precisions: tuple[str, ...] = ("W8A8", "W4A8")
    images: tuple[int, ...] = (1, 8, 32)
    """In a batch."""
    out: Path = Path(__file__).parent / "results" / "cpu_speed.csv"
    """The table; rows that are there already are kept."""

    @torch.no_grad()
    def run(self) -> None:
        rows = read_rows(self.out, Row)
        for name, precision in product(self.models, self.precisions):
            known = {(row.model, row.precision, row.processor, row.versions, row.images) for row in rows}
            here = name, precision, device_name("cpu"), _versions()
            missing = [n for n in self.images if (*here, n) not in known]
            if missing:
                with TemporaryDirectory() as folder:
                    for timed in _tables(name, precision, missing, Path(folder)):
                        rows += timed
                        write_rows(self.out, rows)
                        print(*timed, sep="\n", flush=True)


def _tables(name: str, precision: str, counts: list[int], folder: Path) -> Iterator[list[Row]]:
    """The rows of each batch size."""
    torch.manual_seed(0)
    model = timm.create_model(name).eval().requires_grad_(False)
    noise = gaussian_images(model, _CALIBRATION_IMAGES)
    bits = parse_precision(precision)
    linear, matmul = (quantize(model, noise, Recipe(*bits, scope, softmax="log")) for scope in ("linear", "matmul"))
    variants = variants_of(model, linear, torch.float32, compiled=True)
    more = {f"{name}, compiled": torch.compile(variants[name]) for name in ("bfloat16", "integers + bfloat16")}
    variants |= {**more, "torchao, compiled": _torchao(model)}  # type: ignore[dict-item]
    sessions, counted = _sessions(model, linear, matmul, noise, folder)
    machine = (device_name("cpu"), " ".join(dot_products()) or "none", _versions())
    for count in counts:
        captured = torch.float32, torch.bfloat16
        times = model_times(variants, sessions, model, count, max(_TIMED // count, 4), captured)
        yield [
            Row(
                name,
                precision,
                count,
                each.variant,
                each.milliseconds,
                each.speedup,
                counted.get(each.variant, ""),
                *machine,
            )
            for each in times
        ]


def _sessions(
    model: nn.Module, linear: nn.Module, matmul: nn.Module, noise: Tensor, folder: Path
) -> tuple[dict[str, Session], dict[str, str]]:
    """By name, and what each of them multiplies in integers."""
    files = {}
    for runtime in (ONNXRUNTIME, OPENVINO):
        files[f"{runtime}, float32"] = runtime, folder / "float.onnx"
        files[f"{runtime}, file for any runtime"] = runtime, folder / "any.onnx"
        for scope, qmodel in {"linear": linear, "matmul": matmul}.items():
            files[f"{runtime}, its own file, {scope}"] = runtime, folder / f"{runtime}-{scope}.onnx"
            export_onnx(qmodel, folder / f"{runtime}-{scope}.onnx", runtime=runtime)
    export_float_onnx(linear, folder / "float.onnx")
    export_onnx(linear, folder / "any.onnx")
    files["openvino, NNCF"] = OPENVINO, nncf_file(model, noise, folder)
    found = {name: products(path, runtime, noise[:1]) for name, (runtime, path) in files.items()}
    sessions = {name: session(path, runtime) for name, (runtime, path) in files.items()}
    return sessions, {name: f"{each.integer} of {each.total}" for name, each in found.items()}


def _torchao(model: nn.Module) -> nn.Module:
    """Its int8: weights per channel, activations quantised as they come."""
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ImportError as error:
        raise PsaqError("torchao is not installed; run pip install torchao") from error
    quantised = copy.deepcopy(model)
    quantize_(quantised, Int8DynamicActivationInt8WeightConfig())
    return torch.compile(quantised)  # type: ignore[return-value]


def _versions() -> str:
    try:
        others = {name: import_module(name).__version__ for name in ("onnxruntime", "openvino", "nncf", "torchao")}
    except ImportError as error:
        raise PsaqError(f"{error.name} is not installed; run pip install onnxruntime openvino nncf torchao") from error
    return " ".join(f"{name} {version}" for name, version in {"torch": versions()["torch"], **others}.items())


if __name__ == "__main__":
    run_command(CpuSpeed, prog="python -m psaq.experiments.cpu_speed")

"""How accurate a quantised DeiT-Tiny is where it runs: psaq without data beside NNCF, in onnxruntime and OpenVINO.

python -m psaq.experiments.runtimes --weights W.safetensors --val imagenet/val --train imagenet/train \\
    --images 'images/seed{seed}'

Needs psaq[onnx,openvino] and nncf, whose recipe for transformers is calibrated on as many images as psaq's.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn

from psaq.choices import Scope
from psaq.experiments.nncf_file import nncf_file
from psaq.experiments.rows import read_rows, write_rows
from psaq.images.batches import gaussian_images
from psaq.images.imagenet import imagenet
from psaq.images.pictures import load_pictures, picture_files
from psaq.images.synthetic import SyntheticImages, load_images
from psaq.models.zoo import load_model
from psaq.program import run_command
from psaq.progress import progress_bar
from psaq.quantization.deployment.deploy import deploy
from psaq.quantization.deployment.onnx_graph import export_onnx
from psaq.quantization.deployment.runtimes import ONNXRUNTIME, OPENVINO, session
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe, parse_precision
from psaq.runs import device_name
from psaq.tasks.classification import compare
from psaq_kernels.processor import dot_products

SIMULATION = "simulation"
PSAQ, NNCF_REAL, NNCF_NOISE = "psaq, no data", "NNCF, real images", "NNCF, noise"
_BATCH = 20

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """A quantised model in a runtime; percent."""

    quantiser: str
    scope: str
    """Of psaq's recipe; NNCF quantises queries and keys beside the linear layers."""
    precision: str
    seed: int
    """Of the calibration images; NNCF's real ones are the same for all."""
    where: str
    """The simulation, torch, or a runtime with the file that it was given."""
    top1: float
    fp_top1: float
    fp_agreement: float
    """With full precision."""
    simulation_agreement: float
    """With the simulation of the same model; NaN where there is none."""
    n: int
    processor: str
    dot_products: str
    """Without them sums of int8 weights overflow, psaq's and NNCF's alike."""


@dataclass(frozen=True)
class Runtimes:
    """Measure where DeiT-Tiny loses accuracy; started again, measure only what is missing."""

    weights: Path
    """DeiT-Tiny's safetensors file."""
    val: Path
    """Labelled images to compare on, one folder per wnid."""
    train: Path
    """Real images that NNCF is calibrated on."""
    images: str
    """psaq's calibration images, runs of ``psaq synthesize``; {seed} stands for the seed."""
    precisions: tuple[str, ...] = ("W8A8", "W4A8")
    """psaq's; NNCF has W8A8."""
    seeds: tuple[int, ...] = (0, 1, 2)
    every: int = 1
    """Compare on one image in so many, in sorted path order."""
    crop_pct: float = 0.987
    """Of the evaluation."""
    count: int = 32
    """NNCF's calibration images of each kind."""
    out: Path = Path(__file__).parent / "results" / "runtimes_deit_tiny.csv"
    """The table; rows that are there already are kept."""

    def run(self) -> None:
        rows = read_rows(self.out, Row)
        model = load_model("deit_tiny", self.weights)
        dataset = imagenet(self.val, model, self.crop_pct)
        examples = [dataset[index] for index in range(0, len(dataset), self.every)]  # type: ignore[arg-type]
        x, labels = torch.stack([image for image, _ in examples]), torch.tensor([label for _, label in examples])
        full = _logits(model, x, "FP")
        for cell in self._missing(rows):
            simulated, measured = None, []
            with TemporaryDirectory() as folder:
                for where, forward in self._forwards(model, cell, Path(folder)):
                    logits = _logits(forward, x, f"{cell}: {where}")
                    simulated = logits if where == SIMULATION else simulated
                    measured.append(_row(cell, where, logits, labels, full, simulated))
            rows += measured
            write_rows(self.out, rows)
            print(*measured, sep="\n")

    def _missing(self, rows: list[Row]) -> list["Cell"]:
        scopes = [scope for scope in get_args(Scope) if scope != "all"]
        psaqs = [Cell(PSAQ, *which) for which in product(scopes, self.precisions, self.seeds)]
        done = {Cell(row.quantiser, row.scope, row.precision, row.seed) for row in rows}
        return [cell for cell in (*psaqs, Cell(NNCF_REAL), Cell(NNCF_NOISE)) if cell not in done]

    def _forwards(self, model: nn.Module, cell: "Cell", folder: Path) -> Iterator[tuple[str, Forward]]:
        if cell.quantiser == PSAQ:
            yield from _psaqs(model, load_images(self.images.format(seed=cell.seed)), cell, folder)
        elif cell.quantiser == NNCF_REAL:
            yield _nncf(model, load_pictures(picture_files([self.train])[: self.count], model), folder)
        else:
            yield _nncf(model, gaussian_images(model, self.count, seed=cell.seed), folder)


class Cell(NamedTuple):
    """What is quantised once and measured wherever it runs."""

    quantiser: str
    scope: str = "its own"
    precision: str = "W8A8"
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.quantiser}, {self.scope}, {self.precision}, seed {self.seed}"


def _psaqs(model: nn.Module, images: SyntheticImages, cell: Cell, folder: Path) -> Iterator[tuple[str, Forward]]:
    recipe = Recipe.accurate(*parse_precision(cell.precision), scope=cell.scope)  # type: ignore[arg-type]
    qmodel = quantize(model, images, recipe, progress=True)
    yield SIMULATION, qmodel
    yield "torch, deployed", deploy(qmodel)
    export_onnx(qmodel, folder / "any.onnx")
    yield "onnxruntime, file for any runtime", session(folder / "any.onnx", ONNXRUNTIME)
    yield "OpenVINO, file for any runtime", session(folder / "any.onnx", OPENVINO)
    export_onnx(qmodel, folder / "onnxruntime.onnx", runtime="onnxruntime")
    yield "onnxruntime, its own file", session(folder / "onnxruntime.onnx", ONNXRUNTIME)
    export_onnx(qmodel, folder / "openvino.onnx", runtime="openvino")
    yield "OpenVINO, its own file", session(folder / "openvino.onnx", OPENVINO)


def _nncf(model: nn.Module, images: Tensor, folder: Path) -> tuple[str, Forward]:
    return "OpenVINO, its own file", session(nncf_file(model, images, folder), OPENVINO)


def _row(cell: Cell, where: str, logits: Tensor, labels: Tensor, full: Tensor, simulated: Tensor | None) -> Row:
    found, fp_top1 = compare(logits, labels, full), compare(full, labels).top1
    assert found.agreement is not None
    beside = math.nan if simulated is None else compare(logits, labels, simulated).agreement
    assert beside is not None
    figures = (found.top1, fp_top1, found.agreement, beside, found.n)
    machine = (device_name("cpu"), " ".join(dot_products()) or "none")
    return Row(cell.quantiser, cell.scope, cell.precision, cell.seed, where, *figures, *machine)


@torch.no_grad()
def _logits(forward: Forward, images: Tensor, description: str) -> Tensor:
    batches = progress_bar(images.split(_BATCH), description=description, unit="batch")
    return torch.cat([forward(batch).float() for batch in batches])


if __name__ == "__main__":
    run_command(Runtimes, prog="python -m psaq.experiments.runtimes")

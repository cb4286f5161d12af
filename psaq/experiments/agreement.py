"""How far implementations of one quantised DeiT-Tiny agree on real images: its simulation, deployed, in onnxruntime.

python -m psaq.experiments.agreement --weights W.safetensors --val imagenet/val --images RUN
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from psaq.experiments.nudged import LAST_PLACE, nudged
from psaq.experiments.rows import read_rows, write_rows
from psaq.images.imagenet import imagenet
from psaq.images.synthetic import load_images
from psaq.models.zoo import load_model
from psaq.program import run_command
from psaq.progress import progress_bar
from psaq.quantization.deployment.deploy import deploy
from psaq.quantization.deployment.onnx_graph import export_onnx
from psaq.quantization.deployment.runtimes import session
from psaq.quantization.deployment.simulate import simulate
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import RECIPES, Recipe, parse_precision
from psaq.tasks.classification import compare

KINDS = (("paper", "linear"), ("paper", "all"), ("accurate", "linear"), ("accurate", "matmul"))
"""Recipe and scope of the models that are compared."""

SIMULATION, SIMULATION_BFLOAT16, DEPLOYED_BFLOAT16 = "simulation", "simulation, bfloat16", "deployed, bfloat16"
_BATCH = 25
_PATCH_SUM = 1e-6  # what the sum over an image's patch may lose or gain in another order, as a part of it

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """An implementation beside another, and beside full precision; percent and dB."""

    recipe: str
    scope: str
    precision: str
    digest: str
    """The recipe's: rows of an earlier recipe are measured again."""
    implementation: str
    reference: str
    """The implementation that it is compared with."""
    agreement: float
    logit_sqnr: float
    fp_agreement: float
    """With the full-precision model."""
    top1: float
    fp_top1: float
    n: int


@dataclass(frozen=True)
class Agreement:
    """Compare implementations of quantised DeiT-Tinys; started again, measure only what is missing."""

    weights: Path
    """DeiT-Tiny's safetensors file."""
    val: Path
    """Labelled images to compare on, one folder per wnid."""
    images: Path
    """Calibration images: a run of ``psaq synthesize``."""
    crop_pct: float = 0.987
    """Of the evaluation."""
    every: int = 3
    """Compare on one image in so many, in sorted path order."""
    precisions: tuple[str, ...] = ("W8A8", "W4A8")
    """Bits of weights and activations."""
    out: Path = Path(__file__).parent / "results" / "agreement_deit_tiny.csv"
    """The table; rows that are there already are kept, unless the recipe has changed."""

    def run(self) -> None:
        rows = [row for row in read_rows(self.out, Row) if row.digest == _recipe(*_kind(row)).digest]
        model = load_model("deit_tiny", self.weights)
        dataset = imagenet(self.val, model, self.crop_pct)
        examples = [dataset[index] for index in range(0, len(dataset), self.every)]  # type: ignore[arg-type]
        x, labels = torch.stack([image for image, _ in examples]), torch.tensor([label for _, label in examples])
        full = _logits(model, x, "FP")
        for kind in self._missing(rows):
            qmodel = quantize(model, load_images(self.images), _recipe(*kind), progress=True)
            logits = {name: _logits(forward, x, f"{' '.join(kind)}: {name}") for name, forward in _forwards(qmodel)}
            rows += [_row(kind, *pair, logits, labels, full) for pair in _pairs(logits)]
            write_rows(self.out, rows)
            print(*(row for row in rows if _kind(row) == kind), sep="\n")

    def _missing(self, rows: list[Row]) -> list[tuple[str, str, str]]:
        done = {_kind(row) for row in rows}
        wanted = [(*kind, precision) for kind in KINDS for precision in self.precisions]
        return [kind for kind in wanted if kind not in done]


def _kind(row: Row) -> tuple[str, str, str]:
    return row.recipe, row.scope, row.precision


def _recipe(name: str, scope: str, precision: str) -> Recipe:
    return RECIPES[name](*parse_precision(precision), scope=scope)


def _forwards(qmodel: nn.Module) -> Iterator[tuple[str, Forward]]:
    """The implementations, each made when it is its turn."""
    yield SIMULATION, qmodel
    yield "simulation, patches nudged by 1e-6", _nudged(qmodel, [qmodel.get_submodule("patch_embed")], _PATCH_SUM)
    norms = [module for module in qmodel.modules() if isinstance(module, nn.LayerNorm)]
    yield "simulation, norms nudged by 1e-7", _nudged(qmodel, norms, LAST_PLACE)
    yield "deployed, float32", deploy(qmodel, torch.float32, "exact")
    yield SIMULATION_BFLOAT16, simulate(qmodel, torch.bfloat16)
    yield DEPLOYED_BFLOAT16, deploy(qmodel, torch.bfloat16, "exact")
    with TemporaryDirectory() as folder:
        export_onnx(qmodel, Path(folder) / "model.onnx")
        yield "onnxruntime", session(Path(folder) / "model.onnx")


def _nudged(model: nn.Module, modules: Iterable[nn.Module], by: float) -> Forward:
    layers, draw = list(modules), torch.Generator().manual_seed(0)

    def forward(images: Tensor) -> Tensor:
        with nudged(layers, by, draw):
            return model(images)

    return forward


def _pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """Every implementation with the simulation, and the deployed one in half precision also with its own."""
    return [*((name, SIMULATION) for name in names), (DEPLOYED_BFLOAT16, SIMULATION_BFLOAT16)]


def _row(
    kind: tuple[str, str, str], name: str, reference: str, logits: dict[str, Tensor], labels: Tensor, full: Tensor
) -> Row:
    beside, fp = compare(logits[name], labels, logits[reference]), compare(logits[name], labels, full)
    assert beside.agreement is not None
    assert beside.logit_sqnr is not None
    assert fp.agreement is not None
    which, fp_top1 = (*kind, _recipe(*kind).digest, name, reference), compare(full, labels).top1
    return Row(*which, beside.agreement, beside.logit_sqnr, fp.agreement, fp.top1, fp_top1, fp.n)


@torch.no_grad()
def _logits(forward: Forward, images: Tensor, description: str) -> Tensor:
    batches = progress_bar(images.split(_BATCH), description=description, unit="batch")
    return torch.cat([forward(batch).float() for batch in batches])


if __name__ == "__main__":
    run_command(Agreement, prog="python -m psaq.experiments.agreement")

"""What psaq makes of vision transformers of every make: one row each, with random weights.

python -m psaq.experiments.any_model --out any_model.csv --page models.md
"""

import math
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.experiments.architectures import Build, architectures
from psaq.experiments.rows import read_rows, write_rows
from psaq.experiments.share import quantised_share
from psaq.files import write_text
from psaq.models.answers import Answering
from psaq.models.calling import tensors_of
from psaq.models.data import data_config
from psaq.models.features import feature_sites
from psaq.program import run_command
from psaq.progress import note
from psaq.quantization.checkpoint import load, save
from psaq.quantization.deployment.deploy import deploy
from psaq.quantization.model.conversion import structure
from psaq.quantization.pipeline import left_out, quantize
from psaq.quantization.recipes import Recipe
from psaq.tasks.classification import logit_sqnr

RESULTS = Path(__file__).parent / "results" / "any_model.csv"


@dataclass(frozen=True)
class Row:
    """One model and what came out of it."""

    model: str
    """Library and family."""
    layers: int
    """Linear and convolution layers that are quantised."""
    attentions: int
    """Layers of attention whose patch features synthesis and figures take."""
    share: float
    """Multiplications with both factors quantised, at W4A8 of the paper's recipe, scope matmul; in percent."""
    w8a8: float
    """SQNR of the answers to noise at W8A8 of the accurate recipe, in dB."""
    w4a8: float
    """The same at W4A8."""
    left_out: str
    """Parts of the accurate recipe that the model's structure has no place for."""
    file: str
    """How the saved and loaded model answers: "same" bits, an SQNR in dB, or the error."""
    deployed: str
    """Likewise in integers, in float32."""
    compiled: str
    """Likewise compiled, whole."""
    exported: str
    """Likewise exported."""
    seconds: float
    """Of the whole row, on two cores; a hint, no benchmark."""


@dataclass(frozen=True)
class AnyModel:
    """Quantise many vision transformers in every way; a table that is begun goes on with what is missing."""

    out: Path = RESULTS
    """The table."""
    only: str = ""
    """Models whose name has this part."""
    again: bool = False
    """Measure also what the table has already."""
    page: Path | None = None
    """Write the table for readers, too, in Markdown."""

    def run(self) -> None:
        chosen = {name: build for name, build in architectures().items() if self.only in name}
        if not chosen:
            raise PsaqError(f"only {self.only!r}: no model has that in its name, such as 'timm: beit'")
        rows = {row.model: row for row in read_rows(self.out, Row)}
        for name, build in chosen.items():
            if name in rows and not self.again:
                continue
            try:
                rows[name] = measured(name, build)
            except Exception as error:  # one model's failure is a result, too
                note(f"{name}: {type(error).__name__}: {error}")
                continue
            write_rows(self.out, [rows[known] for known in architectures() if known in rows])
            print(rows[name], flush=True)
        if self.page is not None:
            write_text(self.page, page(list(rows.values())))


def page(rows: Sequence[Row]) -> str:
    """The table for readers, in Markdown."""
    lines = [
        f"| {row.model} | {row.share:.0f} % | {row.w8a8:.1f} | {row.w4a8:.1f} | {row.left_out or '–'} | {_ways(row)} |"
        for row in rows
    ]
    return "\n".join([_PAGE, *lines, ""])


_PAGE = """# Models that were tried

What psaq makes of vision transformers of every make, with random weights and noise as images: measured by
`python -m psaq.experiments.any_model`, kept in `psaq/experiments/results/any_model.csv`. *Quantised* is the share of
multiplications with both factors quantised (W4A8, the paper's recipe, scope matmul). *dB* is the SQNR of the answers,
accurate recipe. *Left out* are parts of that recipe for which the model's structure, or such images, have no place.
*Otherwise* says where the model loaded from its file, deployed in integers, compiled whole or exported does not answer
with the same bits.

| model | quantised | W8A8, dB | W4A8, dB | left out | otherwise |
|---|---|---|---|---|---|"""


def _ways(row: Row) -> str:
    ways = {"file": row.file, "integers": row.deployed, "compiled": row.compiled, "exported": row.exported}
    return ", ".join(f"{way}: {outcome}" for way, outcome in ways.items() if outcome != "same") or "–"


def measured(name: str, build: Build) -> Row:
    """Quantise a model in every way. Raises PsaqError where it is refused."""
    start, model = time.perf_counter(), build()
    images = noise(model, 2)
    paper = quantize(model, images, Recipe.paper(4, 8, scope="matmul"))
    share = quantised_share(paper, images[:1], 4, 8)
    for other in share.others[:5]:
        note(f"{name}: not quantised: {other}")
    accurate = {bits: quantize(model, images, _recipe(bits)) for bits in (8, 4)}
    answers, wanted = Answering(accurate[8])(images), Answering(model)(images)
    return Row(
        model=name,
        layers=len(structure(accurate[8]).layers),
        attentions=len(feature_sites(accurate[8])),
        share=round(share.percent, 2),
        w8a8=round(logit_sqnr(answers, wanted), 1),
        w4a8=round(logit_sqnr(Answering(accurate[4])(images), wanted), 1),
        left_out=", ".join(left_out(accurate[8])),
        file=_verdict(lambda: _in_file(accurate[8], model, images)),
        deployed=_verdict(lambda: _noise(Answering(deploy(accurate[8], torch.float32, "exact"))(images), answers)),
        compiled=_verdict(lambda: _compiled(accurate[8], images)),
        exported=_verdict(lambda: _exported(accurate[8], images)),
        seconds=round(time.perf_counter() - start, 1),
    )


def noise(model: nn.Module, count: int) -> Tensor:
    """Standard normal images as the model takes them."""
    config = data_config(model)
    return torch.randn(count, config.channels, *config.image_size, generator=torch.Generator().manual_seed(0))


def _recipe(weights: int) -> Recipe:
    """The accurate recipe without copies of the images: the model is what counts here."""
    return Recipe.accurate(weights, 8, flat_copies=0, collages=0)


def _verdict(measure: Callable[[], float]) -> str:
    """ "same", dB, or what was raised."""
    try:
        sqnr = measure()
    except Exception as error:  # whatever a compiler says of a model is the result
        return type(error).__name__
    return "same" if math.isinf(sqnr) else f"{sqnr:.0f} dB"


@torch.no_grad()
def _in_file(qmodel: nn.Module, model: nn.Module, images: Tensor) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save(qmodel, path)
        return _noise(load(path, model)(images), qmodel(images))


@torch.no_grad()
def _compiled(qmodel: nn.Module, images: Tensor) -> float:
    torch.compiler.reset()  # the compiler gives up on a method that it has compiled for eight other models
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler, on what it does within
        return _noise(torch.compile(qmodel, fullgraph=True, backend="eager")(images), qmodel(images))


@torch.no_grad()
def _exported(qmodel: nn.Module, images: Tensor) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(qmodel, (images,), strict=False)
        return _noise(program.module()(images), qmodel(images))


def _noise(found: object, wanted: object) -> float:
    """The least SQNR of the tensors in an output, in dB."""
    return min(logit_sqnr(*pair) for pair in zip(tensors_of(found), tensors_of(wanted), strict=True))


if __name__ == "__main__":
    run_command(AnyModel, prog="python -m psaq.experiments.any_model")

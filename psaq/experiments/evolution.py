"""What each part of `psaq.evolve` is worth: the recipe alone, evolved, and evolved without one part or another.

python -m psaq.experiments.evolution --model deit_tiny --weights W.safetensors --imagenet imagenet --crop-pct 0.987
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from psaq.evaluation import evaluate
from psaq.evolution import EvolutionConfig, evolve
from psaq.experiments.rows import read_rows, write_rows
from psaq.experiments.starts import SharedStart
from psaq.models.zoo import load_model
from psaq.program import run_command
from psaq.quantization.checkpoint import load
from psaq.quantization.recipes import Recipe, parse_precision
from psaq.tables.labelled import ImageSource
from psaq.tasks.classification import Report

REAL, REAL_IMAGES = "real images", 64
VARIANTS: dict[str, dict[str, Any]] = {
    "evolved": {},
    "entropy off": {"entropy_weight": 0.0},
    "disagreement off": {"disagreement_weight": 0.0},
    "refresh off": {"refresh": False},
    "distillation off": {"block_weight": 0.0},
    "class prior off": {"class_weight": 0.0},
    "attention on": {"attention_weight": 1.0},
    "weights move": {"weight_rate": 0.02},
    "weights stay": {"weight_rate": 0.0},
    "ranges slow": {"range_rate": 0.016},
    "reconstruction first": {"reconstruction_steps": 50},
    "paper": vars(EvolutionConfig.paper()),
    REAL: {},
}
"""What differs from the default, by name; the last learns from real images alone."""


@dataclass(frozen=True)
class Result:
    """One evolution beside the recipe's own result, which it starts from."""

    model: str
    variant: str
    precision: str
    seed: int
    minutes: float
    """The time budget, by which rounds were planned."""
    rounds: int
    best_round: int
    top1: float
    start_top1: float
    """Of the recipe alone."""
    fp_top1: float
    agreement: float
    """With the full-precision model, in percent."""
    start_agreement: float
    passes: float
    """Forward-and-backward passes of one image through the full-precision model."""
    seconds: float
    """Of the last start, where a run was stopped and went on; without images and student that another variant had
    made."""
    n: int

    @property
    def cell(self) -> tuple[str, str, str, int, float]:
        return self.model, self.variant, self.precision, self.seed, self.minutes


@dataclass(frozen=True)
class Ablation:
    """Measure evolutions. Killed and started again, it goes on with the cells that are missing."""

    model: str = "micro_vit"
    """Any name that psaq loads a classifier by."""
    weights: Path | None = None
    """Its local file of weights."""
    imagenet: Path | None = None
    """A folder with val/ and train/; the bundled models get rendered scenes."""
    crop_pct: float | None = None
    """Of the evaluation."""
    limit: int = 600
    """Evaluate on at most so many images, evenly spread."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    precisions: tuple[str, ...] = ("W4A4", "W4A8")
    seeds: tuple[int, ...] = (0, 1)
    minutes: float = 5.0
    """Of every evolution."""
    runs: Path = Path("runs/evolution")
    """Where evolutions under way are kept."""
    out: Path = Path(__file__).parent / "results" / "evolution_ablation.csv"
    """The table, written anew after every cell; cells that it has are not measured again."""

    def run(self) -> None:
        results, bench = read_rows(self.out, Result), Bench(self)
        for variant, precision, seed in self._cells():
            cell = (self.model, variant, precision, seed, self.minutes)
            if cell not in {result.cell for result in results}:
                results.append(bench.measure(variant, precision, seed))
                write_rows(self.out, results)
            print(line(next(result for result in results if result.cell == cell)), flush=True)

    def _cells(self) -> Iterator[tuple[str, str, int]]:
        for seed in self.seeds:
            for precision in self.precisions:
                yield from ((variant, precision, seed) for variant in self._variants(seed))

    def _variants(self, seed: int) -> list[str]:
        """With real images a further seed changes nothing but what is kept aside."""
        return [variant for variant in self.variants if variant != REAL or seed == self.seeds[0]]


class Bench:
    """The model and what it is measured on."""

    def __init__(self, options: Ablation):
        self.options = options
        self.starts: dict[Path, Report] = {}
        self.source = ImageSource(options.imagenet, options.limit, options.crop_pct, None, None)

    @cached_property
    def model(self) -> nn.Module:
        return load_model(self.options.model, self.options.weights)

    def measure(self, variant: str, precision: str, seed: int) -> Result:
        options, name = self.options, self.options.model
        config = EvolutionConfig(**{**VARIANTS[variant], "rounds": 1, "minutes": options.minutes, "seed": seed})
        real = self.source.real(name, self.model, REAL_IMAGES) if variant == REAL else None
        folder = options.runs / f"{name}-{variant.replace(' ', '-')}-{precision}-seed{seed}"
        recipe = Recipe.accurate(*parse_precision(precision))
        images_of = "synthesised" if real is None else "real"
        start = SharedStart.find(options.runs / "starts", self.model, recipe, config, images_of)
        with start.shared_with(folder):
            started = time.perf_counter()
            qmodel, images = evolve(self.model, recipe, config, images=real, folder=folder, progress=True)
            seconds = round(time.perf_counter() - started, 1)
        after, before = self._evaluated(qmodel), self._of_start(start.student)
        assert after.reference is not None
        rounds = images.provenance["rounds"]
        return Result(
            *(name, variant, precision, seed, options.minutes, len(rounds) - 1, images.provenance["best_round"]),
            top1=round(after.top1, 2),
            start_top1=round(before.top1, 2),
            fp_top1=round(after.reference.top1, 2),
            agreement=round(after.agreement or 0.0, 2),
            start_agreement=round(before.agreement or 0.0, 2),
            passes=sum(images.provenance["passes"].values()),
            seconds=seconds,
            n=after.n,
        )

    def _of_start(self, student: Path) -> Report:
        """Evaluated once, however many variants share it."""
        if student not in self.starts:
            self.starts[student] = self._evaluated(load(student, self.model))
        return self.starts[student]

    def _evaluated(self, qmodel: nn.Module) -> Report:
        data = self.source.evaluation(self.options.model, self.model)
        report = evaluate(qmodel, data, self.model, progress=True)
        assert isinstance(report, Report)
        return report


def line(result: Result) -> str:
    """A result in a line of text."""
    drop, start_drop = result.fp_top1 - result.top1, result.fp_top1 - result.start_top1
    return (
        f"{result.model} {result.precision} seed {result.seed} {result.variant:<21} drop {drop:5.2f} "
        f"(recipe alone {start_drop:5.2f}), agreement {result.agreement:5.2f} ({result.start_agreement:5.2f}) %, "
        f"round {result.best_round} of {result.rounds}, {result.seconds:.0f} s"
    )


if __name__ == "__main__":
    run_command(Ablation, prog="python -m psaq.experiments.evolution")

"""`psaq.evolve`: rounds of two turns from the recipe's result on, each judged, the best kept."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psaq.choices import TaskName
from psaq.errors import PsaqError
from psaq.evaluation import evaluate
from psaq.evolution.config import EvolutionConfig
from psaq.evolution.images import provoking_images
from psaq.evolution.state import Round, State, claim, load_state
from psaq.files import make_folder
from psaq.images.batches import CalibrationImages, batches_for
from psaq.images.synthetic import NO_CLASS, SyntheticImages, true_colours
from psaq.models.calling import takes
from psaq.models.copying import copied
from psaq.models.data import data_config
from psaq.models.features import example_image
from psaq.models.fingerprint import fingerprint, tensors_fingerprint
from psaq.models.wrappers import unwrapped
from psaq.progress import note
from psaq.quantization.checkpoint import load, save
from psaq.quantization.model.conversion import converted
from psaq.quantization.passes.collages import collages
from psaq.quantization.passes.distillation import Lesson, Pair, answers_apart
from psaq.quantization.passes.flat_copies import flat_copies
from psaq.quantization.passes.training import Rates, put_on_grids
from psaq.quantization.pipeline import check_overrides, check_recipe, in_type_of, prepared, quantize
from psaq.quantization.recipes import Recipe
from psaq.runs import device_name, versions
from psaq.settings import as_json
from psaq.synthesis import SynthesisConfig
from psaq.synthesis.folder import synthesize_into
from psaq.synthesis.loop import synthesize
from psaq.synthesis.randomness import generator
from psaq.tasks.find import task_of

IDENTITY, START, KEPT_ASIDE, NEW_IMAGES = "evolution.json", "start", "kept_aside", "new_images"
STATE = "evolution.safetensors"
"""Parts of a run's folder."""
STRIP_IMAGES = 6
_BATCH = 32
_FEW_BITS_RATE = 0.02
"""Of weights of fewer than 4 bits, which rounding leaves far from where they were."""


def evolve(
    model: nn.Module,
    recipe: Recipe,
    config: EvolutionConfig | None = None,
    *,
    images: CalibrationImages | None = None,
    folder: Path | str | None = None,
    progress: bool = False,
) -> tuple[nn.Module, SyntheticImages]:
    """Quantise, and let images and quantised model teach each other (PSAQ-ViT V2: Li et al. 2023).

    From what ``recipe`` gives on, each round has two turns: new images maximise patch-similarity entropy and the
    disagreement between the model and its quantised copy; then the copy learns from all images to agree. Every round
    is judged on synthesised images that are kept aside, and the best state is what is returned, so that on these it
    answers as the model does at least as well as the recipe's own result.

    Args:
        model: any module that `psaq.quantize` takes; left as it was.
        recipe: what the student starts from.
        config: rounds, turns and what is weighed against what.
        images: learn from these alone, real ones or any others; by default all are synthesised.
        folder: receives the state after every round. Where it holds one, the evolution goes on from it, also when it
            has come to its end and more rounds or minutes are asked for: on a CPU to the same bits as if it had never
            stopped.
        progress: show bars of the turns, and a line after every round; by default nothing is shown.

    Returns:
        The quantised model as `psaq.quantize` returns it, and the images that it learned from last; their
        ``provenance["rounds"]`` tells what came of every round.

    Raises:
        PsaqError: as `psaq.quantize` and `psaq.synthesize` do; a folder of another evolution; a loss that is no longer
            finite; a model that torch.compile does not take, where it is to.
    """
    evolution = Evolution(model, recipe, config or EvolutionConfig(), images, folder, progress)
    evolution.run()
    return evolution.result()


@dataclass(frozen=True)
class _Images:
    """What an evolution starts from: images to calibrate on, and those on which rounds are judged."""

    calibration: CalibrationImages
    kept_aside: Float[Tensor, "images channels height width"]


class Evolution:
    """One evolution: the teacher, the student and where they stand."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        config: EvolutionConfig,
        images: CalibrationImages | None = None,
        folder: Path | str | None = None,
        progress: bool = False,
    ):
        check_recipe(recipe)
        if not isinstance(config, EvolutionConfig):
            raise PsaqError(f"config {config!r}: must be an EvolutionConfig, such as psaq.EvolutionConfig(rounds=3)")
        self.original = unwrapped(model)
        self.model = _in_float32(self.original)
        self.recipe = replace(recipe, reconstruction_steps=config.reconstruction_steps or recipe.reconstruction_steps)
        self.config, self.progress = config, progress
        check_compiled(self.model, config)
        self.given = None if images is None else self._as_taken(images)
        self.task: TaskName = task_of(self.model, config.task).name
        self.lesson = _lesson(self.task, config, recipe)
        if recipe.overrides:
            check_overrides(converted(self.model, self._example)[0], recipe)
        self.folder = None if folder is None else make_folder(Path(folder))
        if self.folder is not None:
            claim(self.folder / IDENTITY, self._identity)

    def run(self) -> None:
        """Take every round that is left."""
        self.state  # noqa: B018 - the start is judged, and kept, before any round
        while not self._is_finished():
            self._take_round()

    def result(self) -> tuple[nn.Module, SyntheticImages]:
        """The best student, in the model's own type, and the images that there are."""
        self.student.load_state_dict(self.state.best)
        data, pool = data_config(self.model), self.state.pool
        images = SyntheticImages(
            images=pool,
            labels=torch.full((len(pool),), NO_CLASS),
            mean=data.mean,
            std=data.std,
            film=torch.stack(self.state.strip) if self.state.strip else None,
            provenance={
                "evolution": as_json(self.config),
                "rounds": [_without_time(each) for each in self.state.rounds],
                "best_round": self.state.best_round,
                "passes": self.config.passes(len(self.state.rounds) - 1, len(self._examined), self.given is None),
                "versions": versions(),
                "device": device_name(self._like.device),
            },
        )
        return in_type_of(self.original, self.student).eval(), images

    @cached_property
    def images(self) -> _Images:
        """Synthesised, or as they were given."""
        kept = replace(self.config.synthesis, num_images=self.config.kept_aside, seed=self._seed(KEPT_ASIDE))
        calibration = self._synthesised(START, self.config.synthesis) if self.given is None else self.given
        return _Images(calibration, self._as_taken(self._synthesised(KEPT_ASIDE, kept)))

    @cached_property
    def student(self) -> nn.Module:
        """As the recipe gives it. A folder keeps that, and it is read from there, bit for bit."""
        file = None if self.folder is None else self.folder / f"{START}.safetensors"
        if file is not None and file.exists():
            return load(file, self.model)
        student = quantize(self.model, self.images.calibration, self.recipe, progress=self.progress)
        put_on_grids(student)  # from where one that was read goes on
        if file is not None:
            save(student, file)
        return student

    @cached_property
    def teacher(self) -> nn.Module:
        """The model, rescaled as the student is, so that what their blocks emit can be compared."""
        return prepared(self.model, self.images.calibration, self.recipe, _BATCH)[0]

    @cached_property
    def _pair(self) -> Pair:
        """One for all rounds: what has been compiled stays so."""
        return Pair(self.student, self.teacher, self._examined[:1].to(self._like), self.lesson)

    @cached_property
    def state(self) -> State:
        """Where the evolution stands: as the folder has it, else at its start, which is judged first."""
        if self._file is not None and self._file.exists():
            return self._going_on(load_state(self._file, self._identity, self.student.state_dict()))
        started = time.perf_counter()
        now = _snapshot(self.student)
        state = State(self._as_taken(self.images.calibration), now, now)
        state.rounds.append(replace(self._judged(0), seconds=round(time.perf_counter() - started, 3)))
        state.planned = self._planned(state.rounds)
        self._say(state.rounds[-1])
        self._keep(state)
        return state

    def _is_finished(self) -> bool:
        return self.state.planned is not None and len(self.state.rounds) > self.state.planned

    def _take_round(self) -> None:
        """New images, then the student's turn on all of them, then the verdict."""
        state, number, started = self.state, len(self.state.rounds), time.perf_counter()
        self.student.load_state_dict(state.student)
        made = self._new_images(number)
        if made is not None:
            state.pool = torch.cat([state.pool, self._as_taken(made)])[-self.config.pool :]
            state.strip.append(true_colours(made.images[:STRIP_IMAGES], made.mean, made.std))
        shown = self._with_copies(state.pool).to(self._like)
        losses = self._pair.teach(shown, self.config.steps, seed=number, progress=self.progress)
        state.student = _snapshot(self.student)
        verdict = replace(
            self._judged(number),
            entropy=None if made is None else _last(made, "entropy"),
            image_loss=None if made is None else _last(made, "loss"),
            student_loss=sum(losses) / len(losses),
            seconds=round(time.perf_counter() - started, 3),
        )
        state.rounds.append(verdict)
        self._say(verdict)
        if state.best_round == number:
            state.best = state.student
        if state.planned is None:
            state.planned = self._planned(state.rounds)
        self._keep(state)

    def _new_images(self, number: int) -> SyntheticImages | None:
        """Of this round; None where the student is to learn from what there is."""
        if self.given is not None or (number > 1 and not self.config.refresh):
            return None
        checkpoint = None if self.folder is None else self.folder / NEW_IMAGES
        seed = self._seed("round", number)
        return provoking_images(
            self.model, self.student, self.config, self.task, seed, checkpoint, progress=self.progress
        )

    def _with_copies(self, images: Tensor) -> Tensor:
        """Images, and what the recipe adds to those that it calibrates on."""
        recipe = self.recipe
        return torch.cat([images, *collages([images], recipe.collages), *flat_copies([images], recipe.flat_copies)])

    @cached_property
    def _examined(self) -> Tensor:
        """What rounds are judged on. Few images alone would tell a better student from a worse one by chance."""
        return self._with_copies(self.images.kept_aside)

    def _judged(self, number: int) -> Round:
        report = evaluate(self.student, self.images.kept_aside, self.model, task=self.task, batch_size=_BATCH)
        apart, sqnr = answers_apart(self.student, self.teacher, self._examined.to(self._like), self.lesson)
        return Round(number, sqnr, apart, report.agreement)

    def _say(self, verdict: Round) -> None:
        if self.progress:
            note(f"round {verdict.number}: {_in_words(verdict)}")

    def _planned(self, rounds: list[Round]) -> int | None:
        """How many there are to be in all; None until the first tells how many the time budget allows."""
        taken = len(rounds) - 1
        if self.config.minutes is None:
            return self.config.rounds
        if not taken:
            return None
        left = 60 * self.config.minutes - sum(each.seconds for each in rounds)
        return taken + max(0, int(left / rounds[-1].seconds))

    def _going_on(self, state: State) -> State:
        """A state with as many rounds planned as are asked for now. Raises PsaqError where it has more already."""
        taken = len(state.rounds) - 1
        if self.config.minutes is None or state.planned is None:
            state.planned = self._planned(state.rounds)
        if state.planned is not None and state.planned < taken:
            raise PsaqError(
                f"{self.folder}: has {taken} rounds, more than {state.planned}; ask for as many at least, or name "
                "another folder"
            )
        return state

    def _keep(self, state: State) -> None:
        if self._file is not None and self.folder is not None:
            state.save(self._file, self._identity)
            shutil.rmtree(self.folder / NEW_IMAGES, ignore_errors=True)

    def _synthesised(self, name: str, config: SynthesisConfig) -> SyntheticImages:
        if self.folder is None:
            return synthesize(self.model, config, progress=self.progress)
        return synthesize_into(self.folder / name, self.model, config, progress=self.progress)

    def _as_taken(self, images: CalibrationImages) -> Tensor:
        """One tensor on the CPU, normalised as the model takes it."""
        return torch.cat([batch.cpu() for batch in batches_for(self.model, images, _BATCH)])

    @property
    def _example(self) -> Tensor:
        """What the model can be traced with before any image is synthesised."""
        return example_image(self.model) if self.given is None else self.given[:1].to(next(self.model.parameters()))

    def _seed(self, *purpose: str | int) -> int:
        return int(torch.randint(2**31, (), generator=generator(self.config.seed, "evolution", *purpose)))

    @property
    def _like(self) -> Tensor:
        return next(self.student.parameters())

    @property
    def _file(self) -> Path | None:
        return None if self.folder is None else self.folder / STATE

    @cached_property
    def _identity(self) -> Mapping[str, Any]:
        given = {} if self.given is None else {"pool": self.given}
        return {
            "config": self.config,
            "recipe": self.recipe,
            "model": fingerprint(self.model),
            "images": tensors_fingerprint(given),
        }


def check_compiled(model: nn.Module, config: EvolutionConfig) -> None:
    """Raises PsaqError where a model is to be compiled that cannot be."""
    if config.compiled and takes(model) == "list":
        raise PsaqError(
            "compiled: torch.compile takes no model that takes a list of images, as detectors do; go without"
        )


def _lesson(task: TaskName, config: EvolutionConfig, recipe: Recipe) -> Lesson:
    of_weights = _FEW_BITS_RATE if recipe.weights < 4 else 0.0
    rates = Rates(
        weights=of_weights if config.weight_rate is None else config.weight_rate,
        floats=config.float_rate,
        ranges=config.range_rate / 2**recipe.activations,
    )
    return Lesson(
        task=task,
        measure=config.measure,
        block_weight=config.block_weight,
        attention_weight=config.attention_weight,
        rates=rates,
        images=config.batch_size,
        precision=config.arithmetic,
        compiled=config.compiled,
    )


def _without_time(verdict: Round) -> dict[str, Any]:
    """What is the same in every run."""
    return {name: value for name, value in asdict(verdict).items() if name != "seconds"}


def _in_float32(model: nn.Module) -> nn.Module:
    """In half precision a step of training would be lost in rounding."""
    kind = next(model.parameters()).dtype
    return model if torch.finfo(kind).bits >= 32 else copied(model).float()


def _snapshot(student: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in student.state_dict().items()}


def _last(images: SyntheticImages, loss: str) -> float:
    return float(images.history[loss][:, -1].mean())


def _in_words(verdict: Round) -> str:
    agreement = "" if verdict.agreement is None else f", agreement {verdict.agreement:.1f}%"
    losses = {"new images' loss": verdict.image_loss, "student's loss": verdict.student_loss}
    known = "".join(f", {name} {value:.4g}" for name, value in losses.items() if value is not None)
    apart = f"{verdict.image_sqnr:.2f} dB, disagreement {verdict.disagreement:.4g}"
    return f"{apart} on the images kept aside{agreement}{known}"

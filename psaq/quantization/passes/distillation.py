"""Training a quantised model so that it answers as it did in full precision.

Distillation from the model into its quantised self (PSAQ-ViT V2: Li et al. 2023; features: Romero et al. 2015), through
the quantisers by straight-through gradients. Weights move between levels, steps and ranges, biases and LayerNorms
make up for what is left. Block by block (`reconstruction`) each error is judged where it arises; here by what it does
to the answer.
"""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psaq.choices import Measure, Precision, TaskName
from psaq.errors import PsaqError
from psaq.models.answers import Answering
from psaq.models.features import PatchFeatureRecorder
from psaq.models.precision import autocast
from psaq.progress import progress_bar
from psaq.quantization.model.walk import blocks
from psaq.quantization.passes.disagreement import disagreement, feature_disagreement, image_sqnr
from psaq.quantization.passes.training import Rates, trained

Images = Float[Tensor, "images channels height width"]

_REPORT_EVERY = 5  # steps: reading a loss waits for the device
_SHIFT = 1 / 15  # of the image's side, at most: as far as synthesis moves its images


@dataclass(frozen=True)
class Lesson:
    """What a student is to learn from its teacher."""

    task: TaskName | None = None
    """What both answer with; where it is not told, classes or features, as their output shows."""
    measure: Measure = "divergence"
    """Of the answers' disagreement."""
    block_weight: float = 1.0
    """Of the disagreement in what every block emits."""
    attention_weight: float = 0.0
    """Of the disagreement in what attention makes of its values, in every head of every layer."""
    rates: Rates = field(default_factory=Rates)
    """How far a step moves what is trained."""
    images: int = 8
    """Per step."""
    seed: int = 0
    """Which images come when, and how they are moved."""
    precision: Precision = "float32"
    """Of what student and teacher multiply; losses are taken in float32."""
    compiled: bool = False
    """Whether torch.compile takes both: minutes for the first step, and then faster ones."""


def distil(qmodel: nn.Module, reference: nn.Module, images: Images, steps: int, progress: bool = False) -> None:
    """Train ``qmodel`` to emit, in every block and at the end, what ``reference`` emits; weights end on the grid.

    Where its answers to ``images`` have not come closer by that, it is left as it was.

    Args:
        qmodel: quantised at every point that it shall have.
        reference: the same model in full precision.
        images: what both are shown, shifted and flipped anew at every step.
        steps: of Adam, the rate falling to zero.

    Raises:
        PsaqError: the loss became NaN or infinite.
    """
    lesson = Lesson()
    before, error = copy.deepcopy(qmodel.state_dict()), answer_error(qmodel, reference, images, lesson)
    teach(qmodel, reference, images, steps, lesson, progress)
    if not answer_error(qmodel, reference, images, lesson) < error:
        qmodel.load_state_dict(before)


def teach(
    student: nn.Module, teacher: nn.Module, images: Images, steps: int, lesson: Lesson, progress: bool = False
) -> list[float]:
    """Train ``student`` on images that are shifted and flipped anew at every step; weights end on the grid.

    Args:
        teacher: the same model in full precision, rescaled alike.

    Returns:
        The loss of every step.

    Raises:
        PsaqError: the loss became NaN or infinite.
    """
    return Pair(student, teacher, images[:1], lesson).teach(images, steps, lesson.seed, progress)


def answer_error(student: nn.Module, teacher: nn.Module, images: Images, lesson: Lesson) -> float:
    """The disagreement of two models' answers, its mean over the images."""
    return answers_apart(student, teacher, images, lesson)[0]


@torch.no_grad()
def answers_apart(student: nn.Module, teacher: nn.Module, images: Images, lesson: Lesson) -> tuple[float, float]:
    """The disagreement of two models' answers, its mean over the images; and the mean of the images' own signal to
    noise in dB, in which no few images on which the two differ outweigh all others."""
    answers, losses, decibels = _Answers(student, teacher, lesson), [], []
    for part in images.split(lesson.images):  # one after the other: the maps of all images may not fit
        pair = answers.of(part)
        losses.append(answers.disagreement(*pair) * len(part))
        decibels.append(image_sqnr(*pair))
    return float(torch.stack(losses).sum()) / len(images), float(torch.cat(decibels).mean())


class _Answers:
    """What two models answer."""

    def __init__(self, student: nn.Module, teacher: nn.Module, lesson: Lesson):
        self.student, self.teacher, self.lesson = Answering(student), Answering(teacher), lesson

    def of(self, images: Images) -> tuple[list[Tensor], list[Tensor]]:
        """The student's, and its teacher's, in parts."""
        with torch.no_grad():
            wanted = self.teacher.with_parts(images)[1]
        return self.student.with_parts(images)[1], wanted

    def disagreement(self, answers: list[Tensor], wanted: list[Tensor]) -> Float[Tensor, ""]:
        task = self.lesson.task or ("classification" if self.student.has_classes else "features")
        return disagreement(answers, wanted, task, self.lesson.measure)


class Pair:
    """A student and its teacher, and what both emit on the way to their answers.

    One pair at a time is compiled: a compiler does not see what was hooked to a model since, or to another like it.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, image: Images, lesson: Lesson):
        names = blocks(student, image).names if lesson.block_weight else ()
        models = (student, teacher)
        self.student, self.lesson = student, lesson
        if lesson.compiled:
            torch.compiler.reset()
            student, teacher = _compiled(student), _compiled(teacher)
        self.answers = _Answers(student, teacher, lesson)
        self.emitted = [_Emitted(model, names) for model in models]
        watched = models if lesson.attention_weight else ()
        self.recorders = [PatchFeatureRecorder(model, "separate", images=image) for model in watched]

    def teach(self, images: Images, steps: int, seed: int, progress: bool = False) -> list[float]:
        """One turn, as the function of that name describes it; which images come when follows from the seed."""
        draw = torch.Generator().manual_seed(seed)
        chosen, losses = _draws(len(images), draw), []
        with self._watched(), trained(self.student, steps, "the whole model", self.lesson.rates) as step:
            bar = progress_bar(range(steps), description="Distilling", unit="step", enabled=progress)
            for number in bar:
                shown = _moved(images[[next(chosen) for _ in range(self.lesson.images)]], draw)
                with _naming_the_compiler() if self.lesson.compiled and number == 0 else nullcontext():
                    loss = self._loss(shown)
                    step(loss)
                losses.append(loss.detach())
                if number % _REPORT_EVERY == 0:
                    bar.set_postfix(loss=f"{float(losses[-1]):.3g}", refresh=False)
        return torch.stack(losses).tolist() if losses else []

    @contextmanager
    def _watched(self) -> Iterator[None]:
        with ExitStack() as stack:
            for emitted in self.emitted:
                stack.enter_context(emitted.watched())
            for recorder in self.recorders:
                stack.enter_context(recorder.attached())
            yield

    def _loss(self, images: Images) -> Float[Tensor, ""]:
        """Answers', blocks' and attention's disagreement, weighed."""
        with autocast(images.device, self.lesson.precision):
            answers = self.answers.of(images)
        loss = self.answers.disagreement(*answers)
        if self.lesson.block_weight:
            features, wanted = (emitted.take() for emitted in self.emitted)
            assert features or not self.emitted[0].modules, "the blocks ran, and their hooks did not"
            loss = loss + self.lesson.block_weight * feature_disagreement(features, wanted)
        if self.recorders:
            features, wanted = (recorder.features for recorder in self.recorders)
            loss = loss + self.lesson.attention_weight * feature_disagreement(features, wanted)
        return loss


@contextmanager
def _naming_the_compiler() -> Iterator[None]:
    """Around the first step, in which torch.compile works."""
    try:
        yield
    except (PsaqError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of any kind: it runs all of a model, and its gradient, in its own way
        reason = " ".join(str(error).strip().splitlines()[:2])
        raise PsaqError(
            f"torch.compile does not take this model ({reason}); train it without compiled, in another folder"
        ) from error


def _compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model)  # type: ignore[return-value]


class _Emitted:
    """What the blocks of a model emit, run by run."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]):
        self.modules = [model.get_submodule(name) for name in names]
        self.features: list[Tensor] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        handles = [
            module.register_forward_hook(lambda _, __, output: self.features.append(output)) for module in self.modules
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def take(self) -> list[Tensor]:
        features, self.features = self.features, []
        return features


def _draws(count: int, draw: torch.Generator) -> Iterator[int]:
    """Indices without end, each once before any comes again."""
    while True:
        yield from torch.randperm(count, generator=draw).tolist()


def _moved(images: Images, draw: torch.Generator) -> Images:
    """Shifted circularly, and flipped every other time."""
    shifts = [int((2 * torch.rand((), generator=draw) - 1) * _SHIFT * side) for side in images.shape[-2:]]
    images = images.roll(shifts, (2, 3))
    return images.flip(3) if torch.rand((), generator=draw) < 0.5 else images

"""The images' turn: diverse patches, and answers on which student and teacher disagree."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from psaq.choices import TaskName
from psaq.evolution.config import EvolutionConfig
from psaq.images.batches import Images
from psaq.images.synthetic import SyntheticImages
from psaq.models.answers import Answering
from psaq.models.calling import takes
from psaq.progress import progress_bar
from psaq.quantization.passes.disagreement import disagreement
from psaq.synthesis.loop import Aim, Synthesis, frozen


def provoking_images(
    teacher: nn.Module,
    student: nn.Module,
    config: EvolutionConfig,
    task: TaskName,
    seed: int,
    checkpoint: Path | None = None,
    progress: bool = False,
) -> SyntheticImages:
    """New images of one round (Li et al. 2023): −entropy − disagreement + smoothness is minimised over the pixels.

    Args:
        checkpoint: as `synthesize` has it; for the same student only.

    Raises:
        PsaqError: as `synthesize` does.
    """
    further = _against(teacher, student, config, task) if config.disagreement_weight else None
    aim = Aim(config.entropy_weight, further)
    run = Synthesis(teacher, replace(config.synthesis, seed=seed), checkpoint, aim)
    steps = run.total_steps * len(run.batch_sizes)
    with frozen(student), progress_bar(description="New images", total=steps, unit="step", enabled=progress) as bar:
        return run.result([tuple(run.finish_batch(index, bar)) for index in range(len(run.batch_sizes))])


def _against(
    teacher: nn.Module, student: nn.Module, config: EvolutionConfig, task: TaskName
) -> Callable[[Images, Any], Float[Tensor, ""]]:
    """The negated disagreement, by which images are drawn to where the student still fails."""
    asked, taught, like = Answering(teacher), Answering(student), next(student.parameters())

    def loss(images: Images, output: Any) -> Float[Tensor, ""]:
        raw = takes(teacher) == "list"  # a detector's output is chosen already
        wanted = asked.with_parts(images)[1] if raw else asked.parts_of(output, len(images))
        answers = taught.with_parts(images.to(like.dtype))[1]
        apart = disagreement(answers, [part.to(like.dtype) for part in wanted], task, config.measure)
        return -config.disagreement_weight * apart

    return loss

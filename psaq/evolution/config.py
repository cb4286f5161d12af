"""How to evolve: rounds, the two turns of each, what is weighed against what."""

import math
from dataclasses import dataclass, replace
from typing import Any, get_args

from psaq.choices import Measure, Precision, TaskName
from psaq.errors import PsaqError
from psaq.synthesis import SynthesisConfig
from psaq.synthesis.config import Start

_AT_LEAST_ONE = ("rounds", "num_images", "image_steps", "pool", "kept_aside", "steps", "batch_size")
_CHOICES = (("measure", Measure), ("task", TaskName | None), ("start", Start | None), ("arithmetic", Precision))
_OPTIONAL_WEIGHTS = ("class_weight", "weight_rate")
_WEIGHTS = (
    "entropy_weight",
    "disagreement_weight",
    "smoothness_weight",
    "block_weight",
    "attention_weight",
    "float_rate",
    "range_rate",
)


@dataclass(frozen=True)
class EvolutionConfig:
    """Options of `psaq.evolve`. `paper` is V2 as it is described; the default takes longer turns, has images
    show classes where there are any, measures answers by divergence and relative error, has the student emit in every
    block what its teacher emits, and moves its ranges, biases and norms, and weights of 2 and 3 bits.

    Raises:
        PsaqError: a field that is not what its comment says, named with what it may be.
    """

    rounds: int = 4
    """Rounds, each of two turns: new images, then the student learns from all there are."""
    minutes: float | None = None
    """A time budget in place of the rounds: as many as fit, by how long the first took, and at least that one."""
    task: TaskName | None = None
    """What the models answer with, and so how far two answers are apart; found from the model where it is not told."""
    seed: int = 0
    """All images follow from it; which of them the student is shown when is the same for every seed."""
    num_images: int = 32
    """Images to start from, and new ones every round."""
    image_steps: int = 25
    """Of the images' turn."""
    start: Start | None = None
    """What images start from, as synthesis has it."""
    entropy_weight: float = 1.0
    """New images: of their patch-similarity entropy, which is maximised."""
    disagreement_weight: float = 1.0
    """New images: of teacher's and student's disagreement, which is maximised; 0 leaves the student out."""
    smoothness_weight: float = 0.05
    """New images: of the distance from the target total variation."""
    class_weight: float | None = None
    """Images: of the class loss, as synthesis has it by default; 0 is without any class, as V2 is."""
    refresh: bool = True
    """Make new images every round; without it those of the first remain."""
    pool: int = 128
    """The most images that the student learns from: beyond, the oldest give way to new ones."""
    kept_aside: int = 32
    """Images on which rounds are judged; synthesised, and never learned from."""
    steps: int = 100
    """Of the student's turn."""
    batch_size: int = 8
    """Images of each such step."""
    measure: Measure = "divergence"
    """Of disagreement: divergence and relative errors, or V2's mean distance."""
    block_weight: float = 1.0
    """Student: of the disagreement in what every block emits."""
    attention_weight: float = 0.0
    """Student: of the disagreement in what every head attends to (attention-wise distillation)."""
    weight_rate: float | None = None
    """Student: how far a step moves a weight at most, as part of its quantisation step; at 0 weights stay where the
    recipe has rounded them to. By default 0.02 where the recipe gives them 2 or 3 bits, else 0."""
    float_rate: float = 3e-4
    """Student: the same of a bias or norm, as part of its root mean square."""
    range_rate: float = 0.16
    """Student: the same of an activation's step or range, as the part of a level by which its far end moves."""
    reconstruction_steps: int = 0
    """Student: steps for which each block is trained by itself before the first round."""
    arithmetic: Precision = "auto"
    """Of the forward and backward passes of both turns; auto is bfloat16 on a GPU, float32 on a CPU."""
    compiled: bool = False
    """Student: let torch.compile take both models, which costs minutes once and makes all steps of the run faster."""

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            _require(_is_whole(getattr(self, name), 1), name, getattr(self, name), "a whole number, at least 1")
        for name in _WEIGHTS:
            _require(_is_weight(getattr(self, name)), name, getattr(self, name), "a finite number, at least 0")
        for name in _OPTIONAL_WEIGHTS:
            value = getattr(self, name)
            _require(value is None or _is_weight(value), name, value, "a finite number, at least 0")
        steps, minutes = self.reconstruction_steps, self.minutes
        _require(_is_whole(steps, 0), "reconstruction_steps", steps, "a whole number, at least 0")
        _require(minutes is None or (_is_weight(minutes) and minutes > 0), "minutes", minutes, "positive")
        _require(
            not (self.compiled and self.attention_weight), "compiled", self.compiled, "off beside attention_weight"
        )
        for name, choices in _CHOICES:
            _require(getattr(self, name) in _allowed(choices), name, getattr(self, name), f"one of {_words(choices)}")

    @classmethod
    def paper(cls, **options: Any) -> "EvolutionConfig":
        """As V2 describes it: short cycles of the two turns, the outputs' mean distance alone, no class anywhere.

        Args:
            **options: any field, to depart from it by name.
        """
        config = cls(
            rounds=20,
            steps=20,
            start="white",
            class_weight=0.0,
            measure="distance",
            block_weight=0.0,
            weight_rate=0.02,
            float_rate=1.5e-3,
            range_rate=0.016,
        )
        return replace(config, **options)

    @property
    def synthesis(self) -> SynthesisConfig:
        """How the first images and those kept aside are made, and new ones but for the disagreement."""
        return SynthesisConfig(
            num_images=self.num_images,
            seed=self.seed,
            start=self.start,
            steps=self.image_steps,
            class_weight=self.class_weight,
            smoothness_weight=self.smoothness_weight,
            precision=self.arithmetic,
        )

    def passes(self, rounds: int, examined: int, makes_images: bool = True) -> dict[str, float]:
        """What so many rounds cost, each judged on so many images, by turn, in forward-and-backward passes of one image
        through the full-precision model: a forward pass counts a third of one, the student as much as its teacher."""
        made = self.num_images if makes_images else 0
        turns = rounds if self.refresh else min(rounds, 1)
        return {
            "start": float((made + self.kept_aside) * self.image_steps),
            "images": float(made * self.image_steps * (2 if self.disagreement_weight else 1) * turns),
            "student": self.steps * self.batch_size * rounds * 4 / 3,
            "judging": (self.kept_aside + examined) * (rounds + 1) * 2 / 3,
        }


def _allowed(choices: Any) -> list[Any]:
    """What a literal type, or one that may be left out, may be."""
    return [word for part in get_args(choices) for word in (get_args(part) or [None if part is type(None) else part])]


def _words(choices: Any) -> str:
    return ", ".join(str(word) for word in _allowed(choices) if word is not None)


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_weight(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise PsaqError(f"{name} {value!r}: must be {rule}")

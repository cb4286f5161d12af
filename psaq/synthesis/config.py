"""How to synthesise: the schedule, the losses' weights, the authors' settings by name."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal, get_args

from psaq.choices import Grid, Heads, Precision
from psaq.errors import PsaqError

Setting = Literal["sound", "reference"]
Start = Literal["leaves", "natural", "white", "grey"]
Preset = Literal["default", "paper", "faithful", "pictures"]

DEFAULT_STARTS: Mapping[bool, Start] = {True: "natural", False: "leaves"}
"""By whether there is a class loss."""
PIXEL_CLASS_WEIGHT = 10.0
"""Of a segmenter's class loss. Tried on a DPT at W4A4, one seed: mIoU 41.10 without it, 42.15 at 3, 42.43 at 10, 42.70
at 30, where the entropy, 1.7 without it and 1.1 at 10, is down at 0.1."""

_WHOLE = dict.fromkeys(("num_images", "batch_size", "rounds", "steps", "resolutions", "checkpoint_every"), 1)
_WHOLE |= {"jitter": 0, "film_frames": 0}
"""Options that are whole numbers, with the least that each may be."""
_WORDS: Mapping[str, tuple[str, ...]] = {
    "grid": get_args(Grid),
    "heads": get_args(Heads),
    "precision": get_args(Precision),
    **dict.fromkeys(("smoothness", "pixel_range", "class_token"), get_args(Setting)),
}
"""Options that are words, with those that each may be."""


@dataclass(frozen=True)
class SynthesisConfig:
    """Options of the synthesis.

    `paper` is the authors' schedule; the default was chosen by what images of a DeiT-Tiny are worth for their time
    (psaq/experiments/results/image_ablation_deit_tiny.csv).
    """

    num_images: int = 32
    """How many images to make."""
    seed: int = 0
    """Start noise, labels, jitter and flips all follow from it."""
    start: Start | None = None
    """Leaves that hide one another, noise with the spectrum, colours and contrast of photographs, the authors' white
    noise, or nearly even grey; by default natural noise, and leaves where no class loss will draw things into it."""
    batch_size: int = 32
    """Images optimised together; more than fit are made in several batches."""
    rounds: int = 1
    """Rounds of warm-up and cosine decay; round r jitters r times as far."""
    steps: int = 25
    """Steps of each round."""
    warmup: float = 0.2
    """Part of each round over which the learning rate rises linearly; then it falls as a cosine."""
    learning_rate: float | None = None
    """Adam's, in normalised pixel units; by default 0.25 for Swin, else 0.20."""
    jitter: int = 15
    """Largest circular shift in round 1, in pixels of a 224-pixel image."""
    resolutions: int = 1
    """Sizes at which an image moves at once, each half of the one before; 1 is its pixels alone."""
    noise: float = 0.0
    """Standard deviation of fresh noise on what the model sees at each step, in normalised pixel units."""
    class_weight: float | None = None
    """Weight of the cross-entropy to each image's label, by default 1; of a segmenter, of how little its pixels tell of
    their classes, by default 10. What has no classes has no such loss."""
    smoothness_weight: float = 0.05
    """Weight of the distance from the target total variation."""
    variation: float = 1.0
    """The target total variation, as a multiple of the authors'."""
    bandwidth: float = 0.01
    """h of the Gaussian kernel, in units of cosine similarity."""
    grid: Grid = "fine"
    """Where the density is evaluated: spacing ≤ h, or the authors' 10 points."""
    heads: Heads = "mean"
    """Patch features averaged over heads, or each head by itself."""
    smoothness: Setting = "sound"
    """Total variation per image, or the authors' whole-batch norm, which depends on the batch size."""
    pixel_range: Setting = "sound"
    """Clip to the model's own black and white, or to ImageNet's whatever the model."""
    class_token: Setting = "sound"
    """Drop the tokens that are no patches, or the first token of every model, Swin's included."""
    precision: Precision = "auto"
    """Of the model's forward and backward; auto is bfloat16 on a GPU, float32 on a CPU."""
    checkpoint_every: int = 25
    """Steps between checkpoints, where a run folder is there to keep them."""
    film_frames: int = 6
    """Moments of the way from noise to image that are kept, evenly spaced."""

    earlier_defaults: ClassVar[Mapping[str, tuple[Any, ...]]] = {"start": ("natural",), "class_weight": (1.0,)}
    """What options stood at in the records of earlier versions where nobody chose."""

    def __post_init__(self) -> None:
        for name, least in _WHOLE.items():
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            _require(whole and value >= least, name, value, f"a whole number, at least {least}")
        for name, words in _WORDS.items():
            _require(getattr(self, name) in words, name, repr(getattr(self, name)), f"one of {', '.join(words)}")
        for name in ("warmup", "noise", "class_weight", "smoothness_weight", "variation"):
            _require((getattr(self, name) or 0) >= 0, name, getattr(self, name), "at least 0")
        _require(self.warmup < 1, "warmup", self.warmup, "less than 1, the whole round")
        _require(0.002 <= self.bandwidth <= 0.2, "bandwidth", self.bandwidth, "within [0.002, 0.2]")
        _require(self.start in (None, *get_args(Start)), "start", self.start, f"one of {', '.join(get_args(Start))}")
        rate = self.learning_rate
        _require(rate is None or rate > 0, "learning_rate", rate, "positive")

    @property
    def film_steps(self) -> list[int]:
        """The steps after which the film has a frame, 0 being the noise before the first."""
        total, last = self.rounds * self.steps, max(self.film_frames - 1, 1)
        return sorted({round(frame * total / last) for frame in range(self.film_frames)})

    @classmethod
    def paper(cls, faithful: bool = False, **options: Any) -> "SynthesisConfig":
        """The authors' schedule: from white noise, 2 rounds of 500 steps, 100 of them to warm up, jitter ±15, then ±30.

        Args:
            faithful: also their entropy grid, whole-batch total variation, ImageNet pixel range and first-token rule.
            **options: any field, to depart from the schedule by name.
        """
        config = cls(start="white", rounds=2, steps=500, warmup=0.2, jitter=15)
        if faithful:
            config = replace(
                config, grid="reference", smoothness="reference", pixel_range="reference", class_token="reference"
            )
        return replace(config, **options)

    @classmethod
    def pictures(cls, **options: Any) -> "SynthesisConfig":
        """Images in which a person often sees the class (docs/samples.png): for the eye, not chosen to calibrate on.

        They move at seven resolutions at once (Fort & Whitaker 2025) from grey, the model sees them under fresh noise,
        and the class counts for more than the entropy. It takes a model with classes.

        Args:
            **options: any field, to depart from the preset by name.
        """
        config = cls(
            start="grey",
            steps=400,
            learning_rate=0.04,
            resolutions=7,
            jitter=30,
            noise=0.4,
            class_weight=200.0,
            smoothness_weight=0.5,
            variation=0.3,
        )
        return replace(config, **options)


def with_later_options(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration in full: options that came after it was written stand at what they were before."""
    return asdict(SynthesisConfig(start="natural")) | dict(stored)


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise PsaqError(f"{name} {value}: must be {rule}")


PRESETS: dict[Preset, SynthesisConfig] = {
    "default": SynthesisConfig(),
    "paper": SynthesisConfig.paper(),
    "faithful": SynthesisConfig.paper(faithful=True),
    "pictures": SynthesisConfig.pictures(),
}

"""What every command that quantises asks for: a model, a recipe's bits; and, to calibrate, images or none."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from psaq.choices import Group, Scope
from psaq.commands.options import ModelOptions
from psaq.errors import PsaqError
from psaq.quantization.recipes import RECIPES, Override, Recipe, parse_precision

if TYPE_CHECKING:
    from torch import nn

    from psaq.images.batches import CalibrationImages


@dataclass(frozen=True)
class Quantising:
    """Base of the commands that quantise."""

    model: ModelOptions = field(default_factory=ModelOptions)
    precision: str = "W8A8"
    """Bits of weights and activations, 2 to 8 each."""
    recipe: Literal["accurate", "paper"] = "accurate"
    """The most accurate quantiser psaq has, or the paper's."""
    scope: Scope | None = None
    """Which activations: the inputs of every matrix product (matmul; the accurate recipe's default), those of the
    linear layers (linear), or the authors' points (all; the paper recipe's default)."""
    faithful: bool = False
    """With the paper's recipe: keep the flaw of the authors' code, activation ranges without zero lose their far
    end."""
    group: Group | None = None
    """Inputs that share a scale of 16 bits, in linear layers with weights of up to 4 bits; by default all inputs of an
    output channel do."""
    override: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Other bits for some layers, "blocks.*.mlp.fc2=W8A8", or none, "head=float"; may be given several times, the first
    that fits counts."""
    out: Path | None = None
    """The run's folder; by default runs/COMMAND-MODEL-PRECISION."""

    def chosen_recipe(self, weights: int | None = None) -> Recipe:
        """The recipe that the options describe, for so many bits per weight, by default the precision's. Raises
        PsaqError where they do not go together."""
        named_weights, activations = parse_precision(self.precision)
        if self.faithful and self.recipe != "paper":
            raise PsaqError("--faithful: the flaw is the paper recipe's; add --recipe paper")
        scope = {} if self.scope is None else {"scope": self.scope}
        recipe = RECIPES[self.recipe](weights or named_weights, activations, **scope)
        overrides = tuple(parse_override(text) for text in self.override)
        return replace(recipe, faithful=self.faithful, group=self.group, overrides=overrides)

    def folder(self, command: str) -> Path:
        """Where the run goes."""
        return self.out or Path("runs") / f"{command}-{self.model.label}-{self.precision}"

    def config(self) -> "Quantising":
        """What the run's record keeps: every option but the place."""
        return replace(self, out=None)


@dataclass(frozen=True)
class Calibrating(Quantising):
    """Base of the commands that calibrate."""

    images: Path | None = None
    """Calibrate on these: a run of ``psaq synthesize``, or a folder of real pictures."""
    gaussian: bool = False
    """Calibrate on noise."""
    num_images: int = 32
    """How many calibration images; of a folder, the first in sorted path order."""
    crop_pct: float | None = None
    """For real pictures: part of the resized side that the centre crop keeps; by default the model's own."""
    seed: int = 0
    """Of noise or synthesis."""

    def check(self, model: "nn.Module", recipe: Recipe) -> None:
        """Raise PsaqError for whatever can be seen to be wrong before the folder is made and images are synthesised."""
        from psaq.commands.work.calibration import check

        check(self, model, recipe)

    def calibration_images(self, model: "nn.Module", folder: Path) -> "CalibrationImages":
        """The images asked for; without a word on them, synthesised into ``folder``."""
        from psaq.commands.work.calibration import calibration_images

        return calibration_images(self, model, folder)


FLOAT = "float"
"""In place of a precision: the layers are left as they are."""


def parse_override(text: str) -> Override:
    """ "blocks.*.mlp.fc2=W8A8" as (pattern, 8, 8), "head=float" as ("head", None, None). Raises PsaqError for anything
    else."""
    pattern, equals, precision = text.partition("=")
    if not pattern or not equals:
        raise PsaqError(
            f"override {text!r}: write it as PATTERN=W8A8 or PATTERN=float, the layers' names and their bits"
        )
    if precision == FLOAT:
        return pattern, None, None
    return pattern, *parse_precision(precision)

"""What several evolutions start from, made once: their images, and the student as the recipe gives it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from psaq.digests import json_digest
from psaq.evolution import EvolutionConfig
from psaq.evolution.loop import KEPT_ASIDE, START
from psaq.models.fingerprint import fingerprint
from psaq.quantization.recipes import Recipe
from psaq.settings import as_json

STUDENT = f"{START}.safetensors"
"""In the folder of an evolution."""


@dataclass(frozen=True)
class SharedStart:
    """Where a start waits for the next evolution that begins so."""

    images: Path
    student: Path

    @classmethod
    def find(
        cls, folder: Path, model: nn.Module, recipe: Recipe, config: EvolutionConfig, learns_from: str
    ) -> "SharedStart":
        """The place in ``folder`` of an evolution's start; ``learns_from`` tells what images calibrate its student."""
        made = {"model": fingerprint(model), "synthesis": config.synthesis, "kept aside": config.kept_aside}
        images = folder / json_digest(as_json(made))[:8]
        taught = replace(recipe, reconstruction_steps=config.reconstruction_steps)
        return cls(images, images / f"{taught.digest}-{learns_from}.safetensors")

    @contextmanager
    def shared_with(self, evolution: Path) -> Iterator[None]:
        """Inside the block an evolution's folder holds the parts of the start that are there already; those that it
        had to make are kept afterwards."""
        for shared, own in self._parts(evolution):
            _copy(shared, own)
        yield
        for shared, own in self._parts(evolution):
            _copy(own, shared)

    def _parts(self, evolution: Path) -> Iterator[tuple[Path, Path]]:
        yield from ((self.images / name, evolution / name) for name in (START, KEPT_ASIDE))
        yield self.student, evolution / STUDENT


def _copy(source: Path, target: Path) -> None:
    """A file or a folder that is there, whole or not at all."""
    if not source.exists() or target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    if source.is_dir():
        shutil.copytree(source, part, dirs_exist_ok=True)
    else:
        shutil.copy2(source, part)
    part.rename(target)

"""The state of a synthesis, on disk as it is in memory: a run that is killed goes on as if it had not been."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from psaq.errors import PsaqError
from psaq.files import load_tensors, save_tensors

KIND = "synthesis checkpoint"
LOSSES = ("entropy", "class_loss", "smoothness_loss", "loss")
"""What a step's record holds: entropy summed over layers (nats), then the losses unweighted and in sum."""


@dataclass
class BatchState:
    """One batch of images on its way, with Adam's moments and what has been recorded so far."""

    pixels: Float[Tensor, "images 3 height width"]
    labels: Int[Tensor, " images"]
    mean_gradient: Float[Tensor, "images 3 height width"]
    mean_square: Float[Tensor, "images 3 height width"]
    history: Float[Tensor, "steps losses"]
    film: UInt8[Tensor, "frames shown 3 height width"]
    step: int = 0

    def finished(self) -> bool:
        """Whether every step has been taken."""
        return self.step >= len(self.history)


@dataclass
class SynthesisState:
    """All batches that have been started, in order."""

    batches: list[BatchState] = field(default_factory=list)

    def save(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Write a checkpoint, whole or not at all. ``identity`` says which run it belongs to."""
        tensors = {
            f"{index}.{name}": value
            for index, batch in enumerate(self.batches)
            for name, value in vars(batch).items()
            if isinstance(value, Tensor)
        }
        save_tensors(path, tensors, KIND, {"identity": identity, "steps": [batch.step for batch in self.batches]})


def load_state(path: Path, identity: Mapping[str, Any], device: torch.device) -> SynthesisState:
    """Read a checkpoint of the run that ``identity`` describes.

    Raises:
        PsaqError: the file is damaged, or belongs to a run with another model or configuration.
    """
    tensors, header = load_tensors(path, KIND)
    found = header.get("identity", {})
    differing = [name for name in {**identity, **found} if identity.get(name) != found.get(name)]
    if differing:
        raise PsaqError(
            f"{path}: belongs to a run with another {', '.join(sorted(differing))}; name another folder, or remove it"
        )
    try:
        return SynthesisState([_batch(tensors, index, step, device) for index, step in enumerate(header["steps"])])
    except (KeyError, TypeError) as error:
        raise PsaqError(f"{path}: lacks {error}; remove it to start again") from error


def _batch(tensors: Mapping[str, Tensor], index: int, step: int, device: torch.device) -> BatchState:
    prefix = f"{index}."
    own = {name.removeprefix(prefix): t.to(device) for name, t in tensors.items() if name.startswith(prefix)}
    return BatchState(**own, step=step)

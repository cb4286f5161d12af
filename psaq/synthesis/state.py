"""The state of a batch's synthesis, on disk as it is in memory: killed, it goes on as if it had not been."""

from collections.abc import Mapping
from dataclasses import dataclass
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

    def save(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Write a checkpoint, whole or not at all. ``identity`` says which batch of which run it is."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        save_tensors(path, tensors, KIND, {"identity": identity, "step": self.step})


def load_batch(path: Path, identity: Mapping[str, Any], device: torch.device) -> BatchState:
    """Read a checkpoint of the batch that ``identity`` describes.

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
        return BatchState(**{name: tensor.to(device) for name, tensor in tensors.items()}, step=header["step"])
    except (KeyError, TypeError) as error:
        raise PsaqError(f"{path}: lacks {error}; remove it to start again") from error

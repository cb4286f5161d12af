"""The state of a batch's synthesis, on disk as it is in memory: killed, it goes on as if it had not been."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from psaq.errors import PsaqError
from psaq.files import load_tensors, save_tensors
from psaq.synthesis.config import with_later_options

KIND = "synthesis checkpoint"
LOSSES = ("entropy", "class_loss", "smoothness_loss", "loss")
"""What a step's record holds: entropy summed over layers (nats), then the losses unweighted and in sum."""


@dataclass
class BatchState:
    """One batch of images on its way, with Adam's moments and what has been recorded so far."""

    pixels: Float[Tensor, "images 3 height width"]
    labels: Int[Tensor, " images"]
    mean_gradient: Float[Tensor, "resolutions images 3 height width"]
    mean_square: Float[Tensor, "resolutions images 3 height width"]
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


_MOMENTS = ("mean_gradient", "mean_square")
_TENSORS = {field.name for field in fields(BatchState)} - {"step"}


def load_batch(path: Path, identity: Mapping[str, Any], device: torch.device) -> BatchState:
    """Read a checkpoint of the batch that ``identity`` describes.

    Raises:
        PsaqError: the file is damaged, belongs to a run with another model or configuration, or holds what no run
            comes to.
    """
    tensors, header = load_tensors(path, KIND)
    found = header.get("identity")
    if not isinstance(found, dict) or header.keys() != {"identity", "step"} or tensors.keys() != _TENSORS:
        raise PsaqError(f"{path}: lacks a part, or holds something else; remove it to start again")
    found, identity = _in_full(found), _in_full(identity)
    differing = [name for name in {**identity, **found} if identity.get(name) != found.get(name)]
    if differing:
        raise PsaqError(
            f"{path}: belongs to a run with another {', '.join(sorted(differing))}; name another folder, or remove it"
        )
    # Version 0.1 knows one resolution and does not say so.
    tensors |= {name: tensors[name][None] for name in _MOMENTS if tensors[name].ndim == 4}
    batch = BatchState(**{name: tensor.to(device) for name, tensor in tensors.items()}, step=header["step"])
    wrong = next((what for what, is_right in _invariants(batch) if not is_right), None)
    if wrong is not None:
        raise PsaqError(f"{path}: is damaged: {wrong}; remove it to start again")
    return batch


def _in_full(identity: Mapping[str, Any]) -> Mapping[str, Any]:
    config = identity.get("config")
    return {**identity, "config": with_later_options(config)} if isinstance(config, dict) else identity


def _invariants(batch: BatchState) -> Iterator[tuple[str, bool]]:
    """What holds of every state, each with whether it does; a later one counts on those before it."""
    pixels, moments, history, film = batch.pixels, (batch.mean_gradient, batch.mean_square), batch.history, batch.film
    floats = all(tensor.dtype == torch.float32 for tensor in (pixels, *moments, history))
    yield "it holds other types", floats and batch.labels.dtype == torch.int64 and film.dtype == torch.uint8
    yield "it holds other shapes", pixels.ndim == 4 and all(moment.shape[1:] == pixels.shape for moment in moments)
    yield "its moments are of different resolutions", len({len(moment) for moment in moments}) == 1
    yield "it holds other labels than images", batch.labels.shape == pixels.shape[:1]
    yield "it holds other losses", history.ndim == 2 and history.shape[1] == len(LOSSES)
    yield "it holds another film", film.ndim == 5 and film.shape[2] == 3 and film.shape[3:] == pixels.shape[2:]
    yield "its step is none of its steps", type(batch.step) is int and 0 <= batch.step <= len(history)
    for name in ("pixels", "mean_gradient", "mean_square", "history"):
        yield f"{name} hold NaN or infinity", bool(getattr(batch, name).isfinite().all())
    yield "mean squares are below zero", bool((batch.mean_square >= 0).all())

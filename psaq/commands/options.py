"""Option groups that several commands share."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from psaq.errors import PsaqError

if TYPE_CHECKING:
    import torch
    from torch import nn

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class ModelOptions:
    """Which model, with which weights, on which device."""

    model: str = "micro_vit"
    """A Table 1 name, any timm tag, a bundled model (micro_vit, micro_swin, micro_segmenter,
    micro_detector), transformers:NAME-OR-FOLDER for a model of
    transformers in safetensors, or FILE.py:FUNCTION for a function of yours that returns a torch.nn.Module."""
    weights: Path | None = None
    """A local file of weights (.safetensors, .pth, .pth.tar, .pt, .bin, .ckpt); without it the published ones are
    used."""
    num_classes: int | None = None
    """The class count the weights were trained for, where it is not the model's usual one."""
    image_size: int | None = None
    """The image size in pixels the weights were trained for, where it is not the model's usual one."""
    mean: tuple[float, ...] = ()
    """How pixels in [0, 1] are normalised, a value per channel or one for all, where the model does not say it."""
    std: tuple[float, ...] = ()
    """Likewise."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU where there is one."""

    @property
    def label(self) -> str:
        """The model's name as a part of a file's: of a path its end."""
        return re.sub(r"[^\w.-]+", "-", self.model.rstrip("/").rpartition("/")[2])

    @property
    def is_bundled(self) -> bool:
        """Whether the model lies in the package, and takes rendered scenes."""
        from psaq.models.micro import MICRO_DENSE, MICRO_MODELS

        return self.model in (*MICRO_MODELS, *MICRO_DENSE)

    def load(self) -> "nn.Module":
        """The model on its device. Raises PsaqError as `load_model` does."""
        from psaq.models.zoo import load_model

        return self._placed(load_model(self.model, self.weights, **self._architecture()))

    def build(self) -> "nn.Module":
        """The model on its device with random weights, for inference; no weights are downloaded.

        Raises:
            PsaqError: the model is unknown, or the device is not there.
        """
        from psaq.models.zoo import fresh_model

        return self._placed(fresh_model(self.model, self._architecture()).eval().requires_grad_(False))

    def _placed(self, model: "nn.Module") -> "nn.Module":
        """The model, described as the options say, on its device."""
        from psaq.models.description import describe

        described = describe(model, mean=_one_or_each(self.mean), std=_one_or_each(self.std))
        return described.to(choose_device(self.device))

    def _architecture(self) -> dict[str, Any]:
        options = {"num_classes": self.num_classes, "img_size": self.image_size}
        return {name: value for name, value in options.items() if value is not None}


def _one_or_each(values: tuple[float, ...]) -> float | tuple[float, ...] | None:
    return values[0] if len(values) == 1 else values or None


def choose_device(device: Device) -> "torch.device":
    """The device by name. Raises PsaqError for a GPU that is not there."""
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise PsaqError("device 'cuda': this machine has none that torch can use; take --device cpu")
    return torch.device(device)

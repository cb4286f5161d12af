"""The precision in which a model's passes multiply."""

import torch

from psaq.choices import Precision


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """A context in which products are taken in bfloat16, or in the type that their operands have."""
    automatic = precision == "auto" and device.type != "cpu"
    return torch.autocast(device.type, torch.bfloat16, enabled=automatic or precision == "bfloat16")

"""The fake-quantised model that a runtime's own file is said to compute."""

import copy

import torch
from torch import nn

from psaq.quantization.model.points import Point, live_points, role
from psaq.quantization.quantizers.affine import AffineQuantizer, asymmetric_per_tensor
from psaq.quantization.quantizers.uneven import LogQuantizer, SplitQuantizer


def as_exported(qmodel: nn.Module, runtime: str | None) -> nn.Module:
    """With even levels or none where they are uneven, and with 255 around zero of queries and keys."""
    if runtime is None:
        return qmodel
    model = copy.deepcopy(qmodel)
    points = live_points(model)
    log = any(isinstance(point, LogQuantizer) for point in points.values())
    for name, point in points.items():
        if role(name) in ("query", "key") and runtime != "tensorrt":
            reach = point.grid()[0].abs().max()
            model.set_submodule(name, AffineQuantizer(reach / 127, torch.tensor(128), 8))
        elif role(name) in ("probabilities", "value") and log:
            model.set_submodule(name, Point())
        elif isinstance(point, SplitQuantizer):
            model.set_submodule(name, asymmetric_per_tensor(point.lowest, point.top, 8))
    return model

"""Files of version 0.1, whose points were named by model class, as files of today."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from psaq.models.trace import Trace
from psaq.quantization.model.heads import factor_before
from psaq.quantization.model.points import all_points, role

_SWIN = {"embedded": "patch_embed.norm.output", "features": "norm.output"}
_PIXELS = "patch_embed.pixels."


def upgraded(
    qmodel: nn.Module, trace: Trace, tensors: dict[str, Tensor], header: Mapping[str, Any]
) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Tensors and header with today's names, for the model that they are to be loaded into.

    Where attention is not fused, a query is scaled before it is quantised today and was behind that then.
    """
    renamed = {_name(qmodel, name): tensor for name, tensor in tensors.items()}
    points = {_name(qmodel, name): description for name, description in header["points"].items()}
    for point in points.keys() & all_points(qmodel).keys():
        if role(point) == "query":
            renamed[f"{point}.scale"] = renamed[f"{point}.scale"] * factor_before(qmodel, trace, point)
    return renamed, {**header, "points": points}


def _name(qmodel: nn.Module, name: str) -> str:
    if name.startswith(_PIXELS):
        return name.replace(_PIXELS, "patch_embed.proj.pixels.", 1)
    point, _, rest = name.partition(".")
    if point in _SWIN and _SWIN[point] in all_points(qmodel):
        return f"{_SWIN[point]}.{rest}" if rest else _SWIN[point]
    return name

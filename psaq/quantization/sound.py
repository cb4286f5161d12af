"""Whether what a file says of a quantised model can be meant: its quantisers' numbers, its integers, its header."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode

from psaq.errors import PsaqError
from psaq.models.features import FeatureSite
from psaq.models.image_format import DataConfig
from psaq.quantization.model.points import BARE_WEIGHT, WEIGHT, layer_of, role
from psaq.quantization.model.structure import Structure
from psaq.quantization.quantizers.affine import AffineQuantizer, Quantizer
from psaq.quantization.quantizers.uneven import SplitQuantizer
from psaq.quantization.quantizers.weights import group_of, quantised_points
from psaq.quantization.recipes import Recipe

_ALWAYS = {"recipe", "model", "data", "points"}
_LATER = {"structure", "sites", "left_out", "dtype"}
"""What headers of version 0.1 did not hold."""
_SMALLEST = torch.finfo(torch.float32).tiny
_POSITIVE = ("scale", "top", "levels_per_octave", "negative_step", "std")


def check_header(header: Mapping[str, Any]) -> None:
    """Raises PsaqError where a header has other names than `stored.contents` gives it, or a part is no such thing."""
    extra, missing = header.keys() - _ALWAYS - _LATER, _ALWAYS - header.keys()
    if header.keys() & _LATER:
        missing |= _LATER - header.keys()
    if extra or missing:
        raise _damaged(f"{min(extra | missing)} is {'unknown' if extra else 'missing'}")
    _check_source(header["model"])
    if not _are_texts(header.get("left_out", {})):
        raise _damaged("left_out is no list of reasons")
    dtype = getattr(torch, name := str(header.get("dtype", "float32")), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point or str(dtype) != f"torch.{name}":
        raise _damaged(f"dtype {header['dtype']!r} is no floating-point type")


def check_data(data: DataConfig) -> None:
    """Raises PsaqError where no image is of such a format."""
    numbers = (*data.mean, *data.std, data.crop_pct)
    right = (
        min(data.image_size) > 0
        and len(data.mean) == len(data.std) > 0
        and all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
        and min(data.std) > 0
        and 0 < data.crop_pct <= 1
        and data.interpolation in {mode.value for mode in InterpolationMode}
    )
    if not right:
        raise _damaged(f"no images are like {data}")


def check_structure(model: nn.Module, structure: Structure, sites: Iterable[FeatureSite]) -> None:
    """Raises PsaqError where a structure or a site names what a model does not have."""
    modules = dict(model.named_modules())
    lists = (structure.ends, structure.heads, structure.feeds_activation, structure.activated)
    norms = [name for norm in structure.norms for name in (norm.norm, *norm.layers)]
    for name in [*norms, *(name for names in lists for name in names)]:
        if name not in modules:
            raise _damaged(f"the model has no {name}")
    for norm in structure.norms:
        if not all(isinstance(flag, bool) for flag in (norm.padded, norm.cast, norm.averaged, norm.channels_first)):
            raise _damaged(f"norm {norm.norm} is neither padded nor not")
    for site in sites:
        counts = (site.heads - 1, site.leading, site.trailing, site.place or 0)
        whole = all(type(count) is int and count >= 0 for count in counts) and isinstance(site.channels_first, bool)
        if not whole or not {site.attention, site.layer} <= modules.keys():
            raise _damaged(f"no patch features are at {site}")


def check_description(name: str, description: Mapping[str, Any]) -> None:
    """Raises PsaqError where a point is described by other words than `stored.contents` has."""
    kind = description.get("kind", "affine")
    wanted = {
        "affine": {"bits", "symmetric"},
        "log": {"kind", "bits"},
        "split": {"kind", "bits", "negative_levels", "curve"},
    }
    optional = {"group"} if kind == "affine" and role(name) == WEIGHT else set()
    if description.keys() - optional != wanted.get(kind) or not isinstance(description.get("symmetric", True), bool):
        raise _damaged(f"{name} is described by {dict(description)}")


def check_numbers(qmodel: nn.Module, tensors: Mapping[str, Tensor], points: Iterable[str], recipe: Recipe) -> None:
    """Raises PsaqError, naming it, where a tensor holds what no quantisation gives, or a point has other bits than the
    recipe says."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise _damaged(f"{name} holds NaN or infinity")
    wanted = quantised_points(qmodel, points, recipe)
    for name in points:
        quantizer: Any = qmodel.get_submodule(name)
        if wanted.get(name) != quantizer.bits:
            raise _damaged(f"{name} has {quantizer.bits} bits, and {wanted.get(name)} by the recipe")
        if role(name) == WEIGHT and quantizer.group != (group := _group(qmodel, name, quantizer.bits, recipe)):
            raise _damaged(f"{name} is in groups of {quantizer.group}, and of {group} by the recipe")
        _check_quantizer(name, quantizer, tensors)
    for name, tensor in tensors.items():
        if name.rpartition(".")[2] in _POSITIVE and layer_of(name).endswith(".pixels"):
            _check_positive(name, tensor)


def check_integers(name: str, quantizer: AffineQuantizer, integers: Tensor) -> None:
    """Raises PsaqError where stored integers leave a quantiser's range."""
    if quantizer.bits in (4, 8) or not integers.numel():  # all that are stored are within
        return
    if integers.min() < quantizer.lowest or integers.max() > quantizer.highest:
        raise _damaged(f"{name} has integers beyond [{quantizer.lowest}, {quantizer.highest}]")


def _check_source(source: Any) -> None:
    if source is None:
        return
    texts = {name: source[name] for name in ("name", "architecture", "kind") if name in source}
    if not _are_texts(texts) or not isinstance(source.get("options", {}), dict):
        raise _damaged("model does not say what to build")


def _check_quantizer(name: str, quantizer: Quantizer, tensors: Mapping[str, Tensor]) -> None:
    numbers = {part: tensors[f"{name}.{part}"] for part, _ in quantizer.named_buffers() if f"{name}.{part}" in tensors}
    for part, number in numbers.items():
        if part in _POSITIVE:
            _check_positive(f"{name}.{part}", number)
    if isinstance(quantizer, SplitQuantizer):
        levels, curve = quantizer.negative_levels, quantizer.curve
        if type(levels) is not int or not 0 < levels < 2**quantizer.bits - 1 or curve not in (1, 2):
            raise _damaged(f"{name} has {levels} negative levels and curve {curve}")
    if isinstance(quantizer, AffineQuantizer):
        _check_affine(name, quantizer, numbers)


def _check_affine(name: str, quantizer: AffineQuantizer, numbers: Mapping[str, Tensor]) -> None:
    scale, zero_point = numbers["scale"], numbers.get("zero_point")
    if quantizer.group is not None and scale.dtype != torch.float16:
        raise _damaged(f"{name}.scale is {scale.dtype}, not torch.float16")
    most = 1 if role(name) in (WEIGHT, BARE_WEIGHT) else 0
    if scale.ndim != 2 if quantizer.group is not None else scale.ndim > most:
        raise _damaged(f"{name}.scale is of shape {tuple(scale.shape)}")
    if zero_point is None:
        return
    if zero_point.is_floating_point() or zero_point.shape != scale.shape:
        raise _damaged(f"{name}.zero_point is {zero_point.dtype} of shape {tuple(zero_point.shape)}")
    if zero_point.min() < quantizer.lowest or zero_point.max() > quantizer.highest:
        raise _damaged(f"{name}.zero_point is beyond [{quantizer.lowest}, {quantizer.highest}]")


def _group(qmodel: nn.Module, point: str, bits: int, recipe: Recipe) -> int | None:
    return group_of(qmodel.get_submodule(layer_of(point)), bits, recipe)


def _check_positive(name: str, numbers: Tensor) -> None:
    """Whether every number, its inverse and its multiples are finite."""
    wide = numbers.float()  # in half precision the smallest would be 0
    if not numbers.is_floating_point() or not bool(((wide >= _SMALLEST) & (wide * 256).isfinite()).all()):
        raise _damaged(f"{name} is not positive and finite")


def _are_texts(named: Any) -> bool:
    return isinstance(named, dict) and all(isinstance(value, str) for value in named.values())


def _damaged(what: str) -> PsaqError:
    return PsaqError(f"is damaged: {what}; save the model anew")

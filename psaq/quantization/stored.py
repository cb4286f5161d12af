"""What a file holds of a quantised model: a description of every point, integers for weights; and the way back."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.files import FORMAT_WITH_GROUPS, OLDEST_FORMAT
from psaq.models.features import FeatureSite, feature_sites
from psaq.models.image_format import square
from psaq.models.zoo import DataConfig, data_config, model_source
from psaq.quantization.model.conversion import add_points, structure
from psaq.quantization.model.layers import PIXELS, QuantLayer, is_layer
from psaq.quantization.model.points import WEIGHT, all_points, layer_of, live_points
from psaq.quantization.model.structure import read_structure
from psaq.quantization.passes.pixels import Pixels, attach_pixels
from psaq.quantization.pipeline import left_out
from psaq.quantization.quantizers.affine import AffineQuantizer, Quantizer
from psaq.quantization.quantizers.uneven import LogQuantizer, SplitQuantizer, UnevenQuantizer
from psaq.quantization.recipes import Recipe
from psaq.quantization.sound import check_data, check_description, check_integers, check_numbers, check_structure
from psaq_kernels.packing import NIBBLE_BITS, group_count, pack_nibbles, packed_length, unpack_nibbles

KIND = "quantised model"


def contents(qmodel: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A quantised model as tensors, its weights as integers, and a header of JSON types: the recipe, the model it was,
    its structure and its preprocessing. Raises PsaqError for a model that is not quantised."""
    recipe, source = getattr(qmodel, "psaq_recipe", None), model_source(qmodel)
    if recipe is None:
        raise PsaqError(f"{type(qmodel).__name__}: is not quantised; save what psaq.quantize returned")
    points = live_points(qmodel)
    header = {
        "recipe": recipe.stored,
        "model": None if source is None else asdict(source),
        "data": asdict(data_config(qmodel)),
        "points": {name: _description(point) for name, point in points.items()},
        "structure": asdict(structure(qmodel)),
        "sites": [asdict(site) for site in feature_sites(qmodel)],
        "left_out": left_out(qmodel),
        "dtype": str(next(qmodel.parameters()).dtype).removeprefix("torch."),
    }
    packed = {weight_name(name): _packed(qmodel, name) for name in weights(points)}
    return {**qmodel.state_dict(), **packed, **_scales_of_groups(points)}, header


def format_of(header: Mapping[str, Any]) -> int:
    """The oldest format that holds what a header says."""
    return OLDEST_FORMAT if header["recipe"].get("group") is None else FORMAT_WITH_GROUPS


@contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """Let errors name the file that is being read."""
    try:
        yield
    except PsaqError as error:
        raise PsaqError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PsaqError(f"{path}: its header is damaged ({error!r}); save the model anew") from error


def add_structure(model: nn.Module, header: Mapping[str, Any]) -> None:
    """Give a model the points that a header names, all of them off. Raises PsaqError where it has no such modules."""
    found, modules = read_structure(header["structure"]), dict(model.named_modules())
    missing = [name for name in (*found.outputs, *found.watched) if name not in modules]
    missing += [name for name in found.layers if name not in modules or not is_layer(modules[name])]
    if missing:
        raise misfit(model, f"it has no {min(missing)}")
    sites = [FeatureSite(**site) for site in header["sites"]]
    check_structure(model, found, sites)
    add_points(model, found)
    model.psaq_sites = sites  # type: ignore[assignment]


def data_of(header: Mapping[str, Any]) -> DataConfig:
    """The images that the saved model took."""
    data = DataConfig(**header["data"])
    data = replace(data, image_size=square(data.image_size), mean=tuple(data.mean), std=tuple(data.std))
    check_data(data)
    return data


def furnish(qmodel: nn.Module, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Give a model with points all that the header says and a place for every tensor of the file. Raises PsaqError
    where a number or a word of them cannot be meant."""
    _check_points(qmodel, header["points"])
    _add_biases(qmodel, tensors)
    _add_pixels(qmodel, tensors)
    for name, description in header["points"].items():
        check_description(name, description)
        qmodel.set_submodule(name, _blank(description, tensors, name))
    qmodel.psaq_recipe = recipe = Recipe(**header["recipe"])  # type: ignore[assignment]
    qmodel.psaq_left_out = dict(header.get("left_out", {}))  # type: ignore[assignment]
    check_numbers(qmodel, tensors, header["points"], recipe)


def _add_biases(qmodel: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """A compensated layer has a bias even where the architecture has none."""
    for name, module in qmodel.named_modules():
        if isinstance(module, QuantLayer) and module.bias is None and f"{name}.bias" in tensors:
            module.bias = nn.Parameter(module.weight.new_zeros(len(module.rows(module.weight))))


def _add_pixels(qmodel: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Where the quantised model's patch embedding undoes the images' normalisation, this one gets room for its
    numbers."""
    ending = f".{PIXELS}.std"
    for name, std in tensors.items():
        if name.endswith(ending):
            blank = (1.0,) * len(std)
            attach_pixels(qmodel.get_submodule(name.removesuffix(ending)), Pixels(mean=blank, std=blank))


def _description(point: nn.Module) -> dict[str, Any]:
    if isinstance(point, AffineQuantizer):
        group = {} if point.group is None else {"group": point.group}
        return {"bits": point.bits, "symmetric": point.symmetric, **group}
    if isinstance(point, LogQuantizer):
        return {"kind": "log", "bits": point.bits}
    if isinstance(point, SplitQuantizer):
        shape = {"negative_levels": point.negative_levels, "curve": point.curve}
        return {"kind": "split", "bits": point.bits, **shape}
    raise PsaqError(f"{type(point).__name__}: psaq cannot save what this point does")


_UNEVEN: dict[str, Callable[..., UnevenQuantizer]] = {"log": LogQuantizer, "split": SplitQuantizer}


def _blank(description: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str) -> Quantizer:
    """A quantiser of the kind and size described."""
    if "kind" in description:
        numbers = {key.rpartition(".")[2]: tensor for key, tensor in tensors.items() if layer_of(key) == name}
        return _UNEVEN[description["kind"]](
            **numbers, **{key: description[key] for key in description if key != "kind"}
        )
    scale = tensors[f"{name}.scale"]
    zero_point = None if description["symmetric"] else torch.zeros_like(scale)
    return AffineQuantizer(scale, zero_point, description["bits"], description.get("group"))


def _scales_of_groups(points: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """In the 16 bits that hold them."""
    grouped = {name: point for name, point in points.items() if getattr(point, "group", None) is not None}
    return {f"{name}.scale": point.get_buffer("scale").half() for name, point in grouped.items()}


def _packed(qmodel: nn.Module, name: str) -> Int[Tensor, "out packed"]:
    quantizer = qmodel.get_submodule(name)
    assert isinstance(quantizer, AffineQuantizer)
    layer = qmodel.get_submodule(layer_of(name))
    assert isinstance(layer, QuantLayer)
    integers = quantizer.integers(layer.rows(layer.weight)).flatten(1)
    return pack_nibbles(integers) if quantizer.bits <= NIBBLE_BITS else integers


def unpacked(
    qmodel: nn.Module, tensors: Mapping[str, Tensor], points: Iterable[str]
) -> Iterator[tuple[str, Float[Tensor, "out ..."]]]:
    """The weights that the stored integers stand for, by name."""
    for name in weights(points):
        weight, layer, quantizer = weight_name(name), qmodel.get_submodule(layer_of(name)), qmodel.get_submodule(name)
        assert isinstance(quantizer, AffineQuantizer)
        assert isinstance(layer, QuantLayer)
        stored, shape = tensors[weight], layer.rows(layer.weight).shape
        if stored.shape != packed_shape(qmodel, name):
            raise misfit(qmodel, f"{weight} is {tuple(stored.shape)}, not {packed_shape(qmodel, name)}")
        scales = shape[:1] if quantizer.group is None else (shape[0], group_count(shape[1], quantizer.group))
        if quantizer.scale.ndim and quantizer.scale.shape != scales:
            raise misfit(qmodel, f"{name}.scale is {tuple(quantizer.scale.shape)}, not {tuple(scales)}")
        if stored.dtype != (kind := torch.uint8 if quantizer.bits <= NIBBLE_BITS else torch.int8):
            raise misfit(qmodel, f"{weight} is {stored.dtype}, not {kind}")
        integers = unpack_nibbles(stored, shape[1:].numel()) if quantizer.bits <= NIBBLE_BITS else stored
        check_integers(weight, quantizer, integers)
        yield weight, layer.from_rows(quantizer.real(integers.view(shape)))


def packed_shape(qmodel: nn.Module, point: str) -> tuple[int, int]:
    """The shape of the stored integers of the weight that passes a point."""
    layer, quantizer = qmodel.get_submodule(layer_of(point)), qmodel.get_submodule(point)
    assert isinstance(quantizer, AffineQuantizer)
    assert isinstance(layer, QuantLayer)
    shape = layer.rows(layer.weight).shape
    inputs = shape[1:].numel()
    return shape[0], packed_length(inputs) if quantizer.bits <= NIBBLE_BITS else inputs


def _check_points(qmodel: nn.Module, points: Mapping[str, Any]) -> None:
    unknown = points.keys() - all_points(qmodel).keys()
    if unknown:
        raise misfit(qmodel, f"it has no {min(unknown)}")


def misfit(qmodel: nn.Module, what: str) -> PsaqError:
    """The error of a file and a model that are not of one kind."""
    return PsaqError(f"does not fit {type(qmodel).__name__} ({what}); take the model it was saved from")


def weights(points: Iterable[str]) -> list[str]:
    """Those of the points that weights of layers pass."""
    return [point for point in points if point.endswith(WEIGHT)]


def weight_name(point: str) -> str:
    """The parameter that passes a weight's point."""
    return f"{point.removesuffix(WEIGHT)}weight"

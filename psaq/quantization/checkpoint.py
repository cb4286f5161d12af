"""Quantised models on disk: integers for weights, and all it takes to build the model again."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.files import load_tensors, save_tensors
from psaq.models.zoo import DataConfig, ModelSource, build_model, data_config, model_source
from psaq.quantization.model.conversion import converted
from psaq.quantization.model.layers import QuantConv2d, QuantLinear
from psaq.quantization.model.points import WEIGHT, all_points, layer_of, live_points
from psaq.quantization.passes.pixels import Pixels, attach_pixels
from psaq.quantization.quantizers.affine import AffineQuantizer, Quantizer
from psaq.quantization.quantizers.uneven import LogQuantizer, SplitQuantizer, UnevenQuantizer
from psaq.quantization.recipes import Recipe
from psaq_kernels.packing import NIBBLE_BITS, pack_nibbles, packed_length, unpack_nibbles

KIND = "quantised model"


def save(qmodel: nn.Module, path: Path | str) -> None:
    """Write a quantised model: integer weights (4 bits and fewer two to a byte), scales, zero points, the rest in
    float, and in the header the recipe, the model it was and its preprocessing.

    Raises:
        PsaqError: not a model from `psaq.quantize`, or the file cannot be written; nothing is left half-written.
    """
    recipe, source = getattr(qmodel, "psaq_recipe", None), model_source(qmodel)
    if recipe is None:
        raise PsaqError(f"{type(qmodel).__name__}: is not quantised; save what psaq.quantize returned")
    points = live_points(qmodel)
    header = {
        "recipe": asdict(recipe),
        "model": None if source is None else asdict(source),
        "data": asdict(data_config(qmodel)),
        "points": {name: _description(point) for name, point in points.items()},
    }
    integers = {_weight_name(name): _packed(qmodel, name) for name in filter(_is_weight, points)}
    save_tensors(Path(path), {**qmodel.state_dict(), **integers}, KIND, header)


def load(path: Path | str, model: nn.Module | None = None) -> nn.Module:
    """Read a quantised model: its outputs are those of the saved one, bit for bit.

    Args:
        model: the architecture, its weights ignored; needed only where the model that was quantised did not come
            from `psaq.load_model`.

    Raises:
        PsaqError: the file is absent, damaged, newer or of another kind, or does not fit the architecture.
    """
    path = Path(path)
    tensors, header = load_tensors(path, KIND)
    try:
        return _restored(tensors, header, model)
    except PsaqError as error:
        raise PsaqError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PsaqError(f"{path}: its header is damaged ({error!r}); save the model anew") from error


def _restored(tensors: dict[str, Tensor], header: Mapping[str, Any], model: nn.Module | None) -> nn.Module:
    qmodel = converted(_architecture(header) if model is None else model)
    _check_points(qmodel, header["points"])
    _add_biases(qmodel, tensors)
    _add_pixels(qmodel, tensors)
    for name, description in header["points"].items():
        qmodel.set_submodule(name, _blank(description, tensors, name))
    floats = dict(_unpacked(qmodel, tensors, header["points"]))
    _load_strictly(qmodel, {**tensors, **floats})
    _compute_buffers(qmodel)
    qmodel.psaq_recipe = Recipe(**header["recipe"])  # type: ignore[assignment]
    return qmodel


def _add_biases(qmodel: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """A compensated layer has a bias even where the architecture has none."""
    for name, module in qmodel.named_modules():
        if isinstance(module, QuantLinear | QuantConv2d) and module.bias is None and f"{name}.bias" in tensors:
            module.bias = nn.Parameter(torch.zeros(len(module.weight)))


def _add_pixels(qmodel: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Where the quantised model's patch embedding undoes the images' normalisation, this one gets room for its
    numbers."""
    std = tensors.get("patch_embed.pixels.std")
    if std is not None:
        blank = (1.0,) * len(std)
        attach_pixels(qmodel.get_submodule("patch_embed"), Pixels(mean=blank, std=blank))


def _architecture(header: Mapping[str, Any]) -> nn.Module:
    if header["model"] is None:
        raise PsaqError(
            "holds a model that psaq.load_model did not load; pass its architecture: psaq.load(path, model=module)"
        )
    model = _without_memory(source := ModelSource(**header["model"])) or build_model(source)
    config = DataConfig(**header["data"])
    model.pretrained_cfg = {  # type: ignore[assignment]
        **model.pretrained_cfg,  # type: ignore[dict-item]
        **asdict(config),
        "input_size": (3, *config.image_size),
    }
    return model


def _without_memory(source: ModelSource) -> nn.Module | None:
    """The architecture on torch's meta device: no weight is initialised only to be overwritten. None where something
    that the file does not hold would be left there."""
    try:
        with torch.device("meta"):
            model = build_model(source)
    except PsaqError:  # the architecture computes with its tensors while it is built
        return None
    attributes = (value for module in model.modules() for value in vars(module).values())
    if any(isinstance(value, Tensor) for value in attributes):
        return None
    unsaved = [module for module in model.modules() if _unsaved_buffers(module)]
    return model if all(hasattr(module, "init_non_persistent_buffers") for module in unsaved) else None


def _unsaved_buffers(module: nn.Module) -> dict[str, Tensor]:
    """A module's own buffers that no file holds, as a Swin's window masks and relative positions."""
    held = module.state_dict().keys()
    return {name: buffer for name, buffer in module.named_buffers(recurse=False) if name not in held}


def _compute_buffers(qmodel: nn.Module) -> None:
    """Compute what no file holds, where it has no memory yet; timm's modules know how."""
    for module in qmodel.modules():
        blank = {name: buffer for name, buffer in _unsaved_buffers(module).items() if buffer.is_meta}
        for name, buffer in blank.items():
            setattr(module, name, torch.empty_like(buffer, device="cpu"))
        if blank:
            module.init_non_persistent_buffers()  # type: ignore[operator]


def _description(point: nn.Module) -> dict[str, Any]:
    if isinstance(point, AffineQuantizer):
        return {"bits": point.bits, "symmetric": point.symmetric}
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
    return AffineQuantizer(scale, zero_point, description["bits"])


def _packed(qmodel: nn.Module, name: str) -> Int[Tensor, "out packed"]:
    quantizer = qmodel.get_submodule(name)
    assert isinstance(quantizer, AffineQuantizer)
    integers = quantizer.integers(qmodel.get_parameter(_weight_name(name))).flatten(1)
    return pack_nibbles(integers) if quantizer.bits <= NIBBLE_BITS else integers


def _unpacked(
    qmodel: nn.Module, tensors: Mapping[str, Tensor], points: Mapping[str, Any]
) -> Iterator[tuple[str, Float[Tensor, "out ..."]]]:
    """The weights that the stored integers stand for, by name."""
    for name in filter(_is_weight, points):
        weight = _weight_name(name)
        quantizer, stored, shape = qmodel.get_submodule(name), tensors[weight], qmodel.get_parameter(weight).shape
        assert isinstance(quantizer, AffineQuantizer)
        packed = quantizer.bits <= NIBBLE_BITS
        columns = packed_length(shape[1:].numel()) if packed else shape[1:].numel()
        if stored.shape != (shape[0], columns):
            raise _misfit(qmodel, f"{weight} is {tuple(stored.shape)}, not {(shape[0], columns)}")
        integers = unpack_nibbles(stored, shape[1:].numel()) if packed else stored
        yield weight, quantizer.real(integers.view(shape))


def _load_strictly(qmodel: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Tensors of the file take the place of those that have no memory yet; the others are copied into."""
    expected = qmodel.state_dict()
    typed = {name: tensor.to(expected[name].dtype) if name in expected else tensor for name, tensor in tensors.items()}
    try:
        qmodel.load_state_dict(typed, strict=True, assign=any(tensor.is_meta for tensor in expected.values()))
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise _misfit(qmodel, f"{first}…") from error


def _check_points(qmodel: nn.Module, points: Mapping[str, Any]) -> None:
    unknown = points.keys() - all_points(qmodel).keys()
    if unknown:
        raise _misfit(qmodel, f"it has no {min(unknown)}")


def _misfit(qmodel: nn.Module, what: str) -> PsaqError:
    return PsaqError(f"does not fit {type(qmodel).__name__} ({what}); take the model it was saved from")


def _is_weight(point: str) -> bool:
    return point.endswith(WEIGHT)


def _weight_name(point: str) -> str:
    return f"{point.removesuffix(WEIGHT)}weight"

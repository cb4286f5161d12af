"""Quantised models on disk: integers for weights, and all it takes to build the model again."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.files import load_tensors, save_tensors
from psaq.models.calling import takes
from psaq.models.features import example_image
from psaq.models.place import device_of
from psaq.models.wrappers import innermost
from psaq.models.zoo import DataConfig, ModelSource, build_model, model_source
from psaq.progress import note
from psaq.quantization.hugging_face.folder import is_folder_for, weights_file, write_folder
from psaq.quantization.hugging_face.saving import own_way_to_save
from psaq.quantization.model.conversion import converted, own_copy
from psaq.quantization.sound import check_header
from psaq.quantization.stored import (
    KIND,
    add_structure,
    contents,
    data_of,
    errors_of,
    format_of,
    furnish,
    misfit,
    unpacked,
)
from psaq.quantization.upgrade import upgraded

__all__ = ["KIND", "load", "save"]


def save(qmodel: nn.Module, path: Path | str) -> None:
    """Write a quantised model: integer weights (4 bits and fewer two to a byte), scales, zero points, the rest in
    float, and in the header the recipe, the model it was, its structure and its preprocessing. Where the model cannot
    be built anew from that, it says so.

    Args:
        path: a file; or, of a model of transformers, a folder or any name that does not end in .safetensors, for what
            ``from_pretrained`` reads as well: that file as model.safetensors, with a configuration and an image
            processor beside it.

    Raises:
        PsaqError: not a model from `psaq.quantize`, or the file cannot be written; nothing is left half-written.
    """
    path, qmodel = Path(path), innermost(qmodel)
    if is_folder_for(qmodel, path):
        write_folder(qmodel, path)
    else:
        tensors, header = contents(qmodel)
        save_tensors(path, tensors, KIND, header, format_of(header))
    if model_source(qmodel) is None:
        name = type(qmodel).__name__
        note(f"{path}: holds no way to build a {name}; to load it, psaq.load(path, model=ARCHITECTURE)")


def load(path: Path | str, model: nn.Module | None = None) -> nn.Module:
    """Read a quantised model: its outputs are those of the saved one, bit for bit.

    Args:
        path: a file, or a folder of a model of transformers.
        model: the architecture, its weights ignored; needed only where the model that was quantised did not come
            from `psaq.load_model`.

    Raises:
        PsaqError: the file is absent, damaged, newer or of another kind, or does not fit the architecture.
    """
    path, model = weights_file(Path(path)), None if model is None else innermost(model)
    tensors, header = load_tensors(path, KIND)
    with errors_of(path):
        return own_way_to_save(_restored(tensors, header, model))


def _restored(tensors: dict[str, Tensor], header: Mapping[str, Any], model: nn.Module | None) -> nn.Module:
    check_header(header)
    if "structure" in header:
        qmodel = own_copy(_architecture(header, meta=True) if model is None else model)
        add_structure(qmodel, header)
    else:
        architecture = _architecture(header, meta=False) if model is None else model
        qmodel, seen = converted(architecture, example_image(architecture))
        tensors, header = upgraded(qmodel, seen, tensors, header)
    qmodel.psaq_takes = takes(qmodel if model is None else model)  # type: ignore[assignment]
    qmodel = qmodel.double() if header.get("dtype") == "float64" else qmodel
    furnish(qmodel, tensors, header)
    qmodel.psaq_data = data_of(header)  # type: ignore[assignment]
    floats = dict(unpacked(qmodel, tensors, header["points"]))
    _load_strictly(qmodel, {**tensors, **floats})
    _compute_buffers(qmodel)
    qmodel = qmodel.to(getattr(torch, header["dtype"])) if "dtype" in header else qmodel
    return qmodel if model is None else _beside(model, qmodel)


def _beside(model: nn.Module, qmodel: nn.Module) -> nn.Module:
    """``qmodel``, whose quantisers were read to the CPU, where ``model`` is, unless that has no memory."""
    device = device_of(model)
    return qmodel if device.type == "meta" else qmodel.to(device)


def _architecture(header: Mapping[str, Any], meta: bool) -> nn.Module:
    """The model as it was before it was quantised; where that will do, without memory for its weights."""
    if header["model"] is None:
        raise PsaqError(
            "holds a model that psaq.load_model did not load; pass its architecture: psaq.load(path, model=module)"
        )
    source = ModelSource(**header["model"])
    model = (_without_memory(source) if meta else None) or build_model(source)
    return _with_data(model, data_of(header))


def _with_data(model: nn.Module, config: DataConfig) -> nn.Module:
    """Let a model say what images the saved one took."""
    if hasattr(model, "pretrained_cfg"):
        stated = {**asdict(config), "input_size": (config.channels, *config.image_size)}
        model.pretrained_cfg = {**model.pretrained_cfg, **stated}  # type: ignore[dict-item, assignment]
    else:
        model.psaq_data = config  # type: ignore[assignment]
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


def _load_strictly(qmodel: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Tensors of the file take the place of those that have no memory yet; the others are copied into."""
    expected = qmodel.state_dict()
    typed = {name: tensor.to(expected[name].dtype) if name in expected else tensor for name, tensor in tensors.items()}
    try:
        qmodel.load_state_dict(typed, strict=True, assign=any(tensor.is_meta for tensor in expected.values()))
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise misfit(qmodel, f"{first}…") from error

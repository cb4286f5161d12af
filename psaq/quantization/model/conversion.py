"""From a vision transformer of any make to the same model with quantisation points, all of them off."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.models.calling import takes
from psaq.models.copying import copied
from psaq.models.features import find_sites
from psaq.models.opened import open_attention
from psaq.models.place import type_of
from psaq.models.trace import Trace, trace
from psaq.quantization.model.layers import is_layer
from psaq.quantization.model.structure import Structure, structure_of
from psaq.quantization.model.watching import watch, watch_layer, watch_output


def converted(model: nn.Module, images: Tensor) -> tuple[nn.Module, Trace]:
    """A copy of ``model`` in evaluation mode that computes the same, with every quantisation point off and nothing
    shared between its layers; and the trace that its structure was read from.

    Args:
        images: what the model takes; it is run on the first.

    Raises:
        PsaqError: it is quantised already, there is no attention, or it does not take such images.
    """
    qmodel = own_copy(model)
    seen = trace(qmodel, images[:1])
    qmodel.psaq_sites = find_sites(qmodel, seen)  # type: ignore[assignment]
    qmodel.psaq_takes = takes(model)  # type: ignore[assignment]
    qmodel.psaq_left_out = {}  # type: ignore[assignment]
    bake_weights(qmodel, seen)
    add_points(qmodel, structure_of(qmodel, seen))
    return qmodel, seen


def own_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode and in float32 at least, with modules and parameters of its own in every place. Raises
    PsaqError where it is quantised already."""
    if hasattr(model, "psaq_structure"):
        raise PsaqError(f"{type(model).__name__}: is quantised already; pass the model that it was made from")
    own = copied(model).eval()
    wide = torch.promote_types(type_of(own), torch.float32)  # what is measured and rounded must not be rounded twice
    if any(parameter.dtype != wide for parameter in own.parameters()):
        own.to(wide)
    return with_own_layers(own)


def with_own_layers(model: nn.Module) -> nn.Module:
    """The model itself, torch's attention written out, every place with modules and parameters of its own."""
    open_attention(model)
    return _untied(model)


def add_points(model: nn.Module, structure: Structure) -> None:
    """Let the calls and layers that ``structure`` names lead through points."""
    for name in structure.layers:
        watch_layer(model.get_submodule(name))
    for name in structure.outputs:
        watch_output(model.get_submodule(name))
    for name, entries in {"": {}, **structure.watched}.items():
        watch(model.get_submodule(name), entries)
    model.psaq_structure = structure  # type: ignore[assignment]


def structure(qmodel: nn.Module) -> Structure:
    """What a converted model is known to be made of."""
    known = qmodel.psaq_structure
    assert isinstance(known, Structure)
    return known


def lent_layers(qmodel: nn.Module) -> set[str]:
    """Layers whose weight another module multiplies with: it has to stay there."""
    entries = (
        (module, entry)
        for module, methods in structure(qmodel).watched.items()
        for kinds in methods.values()
        for entry in kinds.get("layer", ())
    )
    return {
        f"{module}.{entry[0]}" if module else str(entry[0]) for module, entry in entries if entry and len(entry) == 1
    }


def bake_weights(model: nn.Module, seen: Trace) -> None:
    """Weights that a layer computes anew at every call (standardised ones) become its own."""
    for index, weight in seen.computed_weights.items():
        call = seen.calls[index]
        layer: Any = model.get_submodule(call.module)
        if is_layer(layer) and seen.is_static(call.sources[1]):
            with torch.no_grad():
                layer.weight.copy_(weight)


def _untied(model: nn.Module) -> nn.Module:
    """The model with modules and parameters of its own in every place: one that is shared cannot be rescaled,
    rounded or given a range for one place alone."""
    modules, parameters = set(), set()
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module in modules:
            model.set_submodule(name, copy.deepcopy(module))
        modules.add(module)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter in parameters:
                setattr(module, name, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
            parameters.add(parameter)
    return model

"""Weights of one's own, as they lie about: which entry of a file they are in and what their names begin with."""

import math
import re
import sys
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.files import read_checkpoint
from psaq.models.transformers_data import is_transformers
from psaq.models.transformers_library import quietly
from psaq.progress import note

ENTRIES = ("model", "state_dict", "state_dict_ema", "module", "teacher", "backbone")
"""Where training scripts put the weights, in the order in which they are looked for."""

_PREFIX = re.compile(r"(?:(?:module|backbone|model|_orig_mod|encoder)\.)+")
_TRANSLATION_ERRORS = (KeyError, ValueError, TypeError, RuntimeError, AttributeError, IndexError, AssertionError)


def load_weights(model: nn.Module, path: Path | str) -> nn.Module:
    """Give ``model`` the weights of a file (.safetensors, .pth, .pth.tar, .pt, .bin, .ckpt), which must hold exactly
    its tensors.

    They may lie in an entry (`ENTRIES`, several deep), and their names may begin with what a wrapper added; what was
    taken is said in a line. Names that timm or transformers used earlier are translated.

    Raises:
        PsaqError: a file that cannot be read, or would run code; tensors that do not fit or hold NaN.
    """
    if not isinstance(path, str | PathLike):
        raise PsaqError(
            f"weights {path!r}: must be the path of a file (.safetensors, .pth, .pth.tar, .pt, .bin, .ckpt)"
        )
    path = Path(path)
    entries, tensors = _unnested(read_checkpoint(path), path)
    prefix = _prefix(tensors, model)
    if entries or prefix:
        note(f"{path}: took {_described(entries, prefix)}")
    bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    _load_strictly(model, _current_layout(model, bare), path)
    return model


def _unnested(content: Any, path: Path) -> tuple[list[str], dict[str, Tensor]]:
    """The names of the entries that lead to the weights, and the weights."""
    entries: list[str] = []
    while isinstance(content, Mapping):
        inner = next((name for name in ENTRIES if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            break
        entries.append(inner)
        content = content[inner]
    tensors = {name: tensor for name, tensor in _items(content) if isinstance(tensor, Tensor)}
    if not tensors:
        found = ", ".join(str(name) for name, _ in _items(content)[:6]) or "nothing"
        raise PsaqError(
            f"{path}: holds no weights under {', '.join(ENTRIES)}, but {found}; save the model's state_dict() alone"
        )
    return entries, tensors


def _items(content: Any) -> list[tuple[Any, Any]]:
    return list(content.items()) if isinstance(content, Mapping) else []


def _prefix(tensors: Mapping[str, Tensor], model: nn.Module) -> str:
    """The beginning without which the most names are the model's; of equals the shortest."""
    expected = model.state_dict().keys()
    candidates = {""}
    for name in tensors:
        if beginning := _PREFIX.match(name):
            parts = beginning[0].split(".")[:-1]
            candidates |= {".".join([*parts[:count], ""]) for count in range(1, len(parts) + 1)}
    known = {prefix: sum(name.removeprefix(prefix) in expected for name in tensors) for prefix in candidates}
    return min(candidates, key=lambda prefix: (-known[prefix], len(prefix), prefix))


def _described(entries: list[str], prefix: str) -> str:
    taken = f"entry {'.'.join(entries)}" if entries else "the weights"
    return f"{taken}, names without their prefix {prefix!r}" if prefix else taken


def _current_layout(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Older checkpoints name their tensors differently; timm and transformers know how to translate them."""
    if tensors.keys() == model.state_dict().keys():
        return tensors
    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        if is_transformers(model):
            return _transformers_layout(model, tensors)
        return tensors if translate is None else translate(tensors, model)
    except _TRANSLATION_ERRORS:
        return tensors


def _transformers_layout(model: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What transformers makes of the tensors, where it can place them all."""
    with quietly():
        loaded, report = type(model).from_pretrained(
            None, config=model.config, state_dict=tensors, output_loading_info=True, dtype=model.dtype
        )
    misfits = (report["missing_keys"], report["unexpected_keys"], report["mismatched_keys"])
    return tensors if any(misfits) else loaded.state_dict()


def _load_strictly(model: nn.Module, tensors: Mapping[str, Tensor], weights: Path) -> None:
    expected = model.state_dict()
    wrong = [f"{name} is missing" for name in expected.keys() - tensors.keys()]
    wrong += [f"{name} is unknown" for name in tensors.keys() - expected.keys()]
    wrong += [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if wrong:
        raise PsaqError(
            f"{weights}: does not fit {type(model).__name__}: {first_few(sorted(wrong))}. Name the model it was "
            "trained as, with its class count (--num-classes) and image size (--image-size)"
        )
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not math.isfinite(tensor.double().sum().item()):
            raise PsaqError(f"{weights}: {name} holds NaN or infinity; take an undamaged file")
    model.load_state_dict(dict(tensors), strict=True)


def first_few(messages: list[str], shown: int = 3) -> str:
    """The first messages, and how many more there are."""
    more = len(messages) - shown
    return "; ".join(messages[:shown]) + (f"; and {more} more" if more > 0 else "")

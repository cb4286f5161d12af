"""What it takes to build a model again: which library, which architecture, which options."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import timm
import torch
from torch import nn

from psaq.errors import PsaqError
from psaq.models.heads import classes_or_none
from psaq.models.image_format import input_channels
from psaq.models.micro import MICRO_DENSE
from psaq.models.micro.dense import micro_dense
from psaq.models.timm_data import built_for
from psaq.models.transformers_data import is_transformers
from psaq.models.transformers_library import build_transformers, described_config, exported_class

Kind = Literal["timm", "transformers", "micro"]


@dataclass(frozen=True)
class ModelSource:
    """What it takes to build a model's architecture again, without its weights."""

    name: str
    """What the user called it."""
    architecture: str
    """The timm model name, tag included, the name of transformers' class, or that of a bundled model."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments for ``timm.create_model``, or transformers' configuration; JSON types only."""
    kind: Kind = "timm"
    """The library that builds it."""


def build_model(source: ModelSource) -> nn.Module:
    """The architecture with fresh weights; nothing is downloaded and no code but the libraries' is run.

    Raises:
        PsaqError: the library refuses the options, or is not there.
    """
    if source.kind == "transformers":
        return remember(build_transformers(source.name, source.architecture, source.options), source).eval()
    if source.kind == "micro" and source.architecture in MICRO_DENSE:
        return remember(micro_dense(source.architecture), source).eval()
    if source.kind != "timm":
        raise PsaqError(f"model {source.name!r}: {source.kind!r} builds it, which is unknown here; upgrade psaq")
    try:
        model = timm.create_model(source.architecture, pretrained=False, **source.options)
    except (RuntimeError, TypeError, ValueError, AssertionError, KeyError) as error:
        raise PsaqError(f"model {source.name!r}: timm cannot build it with {source.options} ({error})") from error
    return remember(model, source).eval()


def model_source(model: nn.Module) -> ModelSource | None:
    """How to build ``model`` again without its weights; None where a module of the user's own cannot be."""
    known = getattr(model, "psaq_source", None)
    if known is not None:
        return known
    guess = _transformers_guess(model) if is_transformers(model) else _timm_guess(model)
    return guess if guess is not None and _builds(guess, model) else None


def remember(model: nn.Module, source: ModelSource) -> nn.Module:
    """The model, which now knows where it comes from."""
    model.psaq_source = source  # type: ignore[assignment]
    return model


def _transformers_guess(model: nn.Module) -> ModelSource | None:
    name = type(model).__name__
    if exported_class(name) is not type(model):
        return None
    return ModelSource(f"transformers:{name}", name, described_config(model.config, model), "transformers")


def _timm_guess(model: nn.Module) -> ModelSource | None:
    config = getattr(model, "pretrained_cfg", None) or {}
    name = config.get("architecture")
    return ModelSource(name, name, dict(_timm_options(model, config))) if name else None


def _timm_options(model: nn.Module, config: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked of timm beside the name, as far as the model shows it."""
    published = config.get("input_size") or (3, None, None)
    channels, size = input_channels(model, published[0]), built_for(model)
    options: dict[str, Any] = {"num_classes": classes_or_none(model) or 0}
    if channels != published[0]:
        options["in_chans"] = channels
    if size is not None and size != tuple(published[1:]):
        options["img_size"] = list(size)
    return options


def _builds(source: ModelSource, model: nn.Module) -> bool:
    """Whether a source gives this very architecture."""
    try:
        options = json.dumps(source.options)
    except TypeError:
        return False
    return _Likeness.of(model) == _likeness(source.kind, source.architecture, options)


@dataclass(frozen=True)
class _Likeness:
    """What two models of one architecture have in common."""

    kind: type[nn.Module]
    pooling: str | None
    shapes: dict[str, torch.Size]

    @classmethod
    def of(cls, model: nn.Module) -> "_Likeness":
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        return cls(type(model), getattr(model, "global_pool", None), shapes)


@lru_cache(maxsize=64)
def _likeness(kind: Kind, architecture: str, options: str) -> _Likeness | None:
    """Of what a source builds, seen without memory for weights; kept, for who quantises a model quantises it often."""
    try:
        with torch.device("meta"):
            return _Likeness.of(build_model(ModelSource(architecture, architecture, json.loads(options), kind)))
    except PsaqError:
        return None

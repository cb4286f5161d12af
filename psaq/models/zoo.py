"""Names to models: the seven of Table 1, the bundled micro models, timm's, transformers', one's own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from psaq.errors import PsaqError
from psaq.models.data import DataConfig, data_config
from psaq.models.heads import classes_or_none, num_classes
from psaq.models.micro import MICRO_DENSE, MICRO_MODELS, micro_weights
from psaq.models.names import timm_source
from psaq.models.published import published_model
from psaq.models.sources import ModelSource, build_model, model_source
from psaq.models.table1_models import TABLE1_MODELS
from psaq.models.transformers_hub import is_transformers_name
from psaq.models.transformers_models import formatted, transformers_model, transformers_source
from psaq.models.user_code import is_user_code, user_model
from psaq.models.weights import load_weights
from psaq.models.wrappers import unwrapped

__all__ = [
    "TABLE1_MODELS",
    "DataConfig",
    "ModelSource",
    "build_model",
    "classes_or_none",
    "data_config",
    "fresh_model",
    "load_model",
    "model_source",
    "named_source",
    "num_classes",
]


def load_model(model: str | nn.Module, weights: Path | str | None = None, **architecture: Any) -> nn.Module:
    """A trained vision transformer in evaluation mode.

    Args:
        model: a Table 1 name (`TABLE1_MODELS`), a bundled model ("micro_vit", "micro_swin", "micro_segmenter",
            "micro_detector"), any timm name or tag,
            "transformers:NAME-OR-FOLDER" for what ``save_pretrained`` wrote, "FILE.py:FUNCTION" for a function of
            one's own that returns a module, or a module, which is put in evaluation mode and returned without its
            wrappers.
        weights: a file (.safetensors, .pth, .pth.tar, .pt, .bin, .ckpt) that must hold exactly the model's tensors;
            its code, if any, is never run. Without it, a named model gets its published weights (the bundled ones lie
            in the package, others come from the Hugging Face hub).
        **architecture: passed to ``timm.create_model`` (``num_classes=10``, ``img_size=384``, …), set in transformers'
            configuration, or passed to the function of one's own.

    Raises:
        PsaqError: an unknown name, weights that do not fit or hold NaN, or no way to get them.
    """
    if isinstance(model, nn.Module):
        _check_built(model, architecture)
        return _loaded(unwrapped(model), weights)
    if not isinstance(model, str):
        raise PsaqError(f"model {model!r}: must be a name or a torch.nn.Module")
    return _trained(model, architecture) if weights is None else _loaded(fresh_model(model, architecture), weights)


def fresh_model(name: str, architecture: Mapping[str, Any] | None = None) -> nn.Module:
    """A named model in evaluation mode, with fresh weights or with those that a function of one's own gives it. Raises
    PsaqError as `load_model`."""
    options = dict(architecture or {})
    if is_user_code(name):
        return unwrapped(user_model(name, options)).eval()
    model = build_model(named_source(name, options))
    return formatted(model, name, options) if is_transformers_name(name) else model


def named_source(name: str, architecture: Mapping[str, Any] | None = None) -> ModelSource:
    """What a name stands for. Raises PsaqError where nobody knows it, and for a function of one's own."""
    if is_user_code(name):
        raise PsaqError(f"model {name!r}: a function of one's own has no architecture by name; load it instead")
    if is_transformers_name(name):
        return transformers_source(name, dict(architecture or {}))
    return timm_source(name, architecture)


def _trained(name: str, options: Mapping[str, Any]) -> nn.Module:
    if is_transformers_name(name):
        return transformers_model(name, options).eval()
    if is_user_code(name):
        return fresh_model(name, options)
    if name in (*MICRO_MODELS, *MICRO_DENSE):
        return _loaded(fresh_model(name, options), micro_weights(name))
    return published_model(named_source(name, options)).eval()


def _loaded(model: nn.Module, weights: Path | str | None) -> nn.Module:
    return (model if weights is None else load_weights(model, weights)).eval()


def _check_built(model: nn.Module, architecture: Mapping[str, Any]) -> None:
    if architecture:
        raise PsaqError(
            f"{', '.join(architecture)}: the {type(model).__name__} is built already; build it so, or give a name"
        )

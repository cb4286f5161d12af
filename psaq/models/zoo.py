"""Names to models: the seven of Table 1, the bundled micro models, any timm tag, any timm module."""

import math
import socket
import sys
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.files import read_safetensors
from psaq.models.data import DataConfig, data_config
from psaq.models.heads import classes_or_none, num_classes
from psaq.models.micro import MICRO_MODELS, micro_architecture, micro_weights

__all__ = [
    "TABLE1_MODELS",
    "DataConfig",
    "ModelSource",
    "build_model",
    "classes_or_none",
    "data_config",
    "load_model",
    "model_source",
    "named_source",
    "num_classes",
]

TABLE1_MODELS = {
    "vit_small": "vit_small_patch16_224.augreg_in21k_ft_in1k",
    "vit_base": "vit_base_patch16_224.augreg_in21k_ft_in1k",
    "deit_tiny": "deit_tiny_patch16_224.fb_in1k",
    "deit_small": "deit_small_patch16_224.fb_in1k",
    "deit_base": "deit_base_patch16_224.fb_in1k",
    "swin_tiny": "swin_tiny_patch4_window7_224.ms_in1k",
    "swin_small": "swin_small_patch4_window7_224.ms_in1k",
}
"""Short name → the timm tag whose weights Table 1 was measured on (a bare name resolves to others)."""


@dataclass(frozen=True)
class ModelSource:
    """What it takes to build a model's architecture again, without its weights."""

    name: str
    """What the user called it."""
    architecture: str
    """The timm model name, tag included."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments for ``timm.create_model``; JSON types only."""


def load_model(model: str | nn.Module, weights: Path | str | None = None, **architecture: Any) -> nn.Module:
    """A trained vision transformer in evaluation mode.

    Args:
        model: a Table 1 name (`TABLE1_MODELS`), a bundled model ("micro_vit", "micro_swin"), any timm name or
            tag, or a timm module, which is returned as it is.
        weights: a safetensors file that must hold exactly the model's tensors. Without it, a named model gets
            its published weights (the bundled ones lie in the package, others come from the Hugging Face hub).
        **architecture: passed to ``timm.create_model`` (``num_classes=10``, ``img_size=384``, …).

    Raises:
        PsaqError: an unknown name, weights that do not fit or hold NaN, or no way to get them.
    """
    if isinstance(model, nn.Module):
        return _loaded(model, weights)
    source = named_source(model, architecture)
    if weights is not None:
        return _loaded(build_model(source), weights)
    if model in MICRO_MODELS:
        return _loaded(build_model(source), micro_weights(model))
    return _remember(_download(source), source).eval()


def named_source(name: str, architecture: Mapping[str, Any] | None = None) -> ModelSource:
    """What a name stands for. Raises PsaqError where neither psaq nor timm knows it."""
    options = dict(architecture or {})
    if name in MICRO_MODELS:
        tag, micro_options = micro_architecture(name)
        return ModelSource(name, tag, {**micro_options, **options})
    tag = TABLE1_MODELS.get(name, name)
    if not timm.is_model(tag.split(".")[0]):
        known = ", ".join([*TABLE1_MODELS, *MICRO_MODELS])
        raise PsaqError(f"model {name!r}: neither psaq nor timm knows it; psaq's own names are {known}")
    return ModelSource(name, tag, options)


def build_model(source: ModelSource) -> nn.Module:
    """The architecture with fresh weights. Raises PsaqError where timm refuses the options."""
    try:
        model = timm.create_model(source.architecture, pretrained=False, **source.options)
    except (RuntimeError, TypeError, ValueError, AssertionError, KeyError) as error:
        raise PsaqError(f"model {source.name!r}: timm cannot build it with {source.options} ({error})") from error
    return _remember(model, source).eval()


def model_source(model: nn.Module) -> ModelSource | None:
    """How to build ``model`` again without its weights; None where a module of the user's own cannot be."""
    known = getattr(model, "psaq_source", None)
    if known is not None:
        return known
    config = getattr(model, "pretrained_cfg", None) or {}
    if not config.get("architecture"):
        return None
    guess = ModelSource(config["architecture"], config["architecture"], {"num_classes": classes_or_none(model) or 0})
    return guess if _same_shapes(model, guess) else None


def _remember(model: nn.Module, source: ModelSource) -> nn.Module:
    model.psaq_source = source  # type: ignore[assignment]
    return model


def _loaded(model: nn.Module, weights: Path | str | None) -> nn.Module:
    if weights is not None:
        tensors, _ = read_safetensors(Path(weights))
        _load_strictly(model, _current_layout(model, tensors), Path(weights))
    return model.eval()


def _current_layout(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Older checkpoints name their tensors differently; timm knows how to translate them."""
    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if translate is None or tensors.keys() == model.state_dict().keys():
        return tensors
    try:
        return translate(tensors, model)
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError, IndexError, AssertionError):
        return tensors


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
            f"{weights}: does not fit {type(model).__name__}: {_first(sorted(wrong))}. Name the model it was "
            "trained as, with its class count (--num-classes) and image size (--image-size)"
        )
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not math.isfinite(tensor.double().sum().item()):
            raise PsaqError(f"{weights}: {name} holds NaN or infinity; take an undamaged file")
    model.load_state_dict(dict(tensors), strict=True)


def _first(messages: list[str], shown: int = 3) -> str:
    more = len(messages) - shown
    return "; ".join(messages[:shown]) + (f"; and {more} more" if more > 0 else "")


def _same_shapes(model: nn.Module, source: ModelSource) -> bool:
    try:
        with torch.device("meta"):
            rebuilt = build_model(source)
    except PsaqError:
        return False
    return {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in rebuilt.state_dict().items()}


def _download(source: ModelSource) -> nn.Module:
    file = _published_weights(source)
    overlay = {**source.options.get("pretrained_cfg_overlay", {}), "file": str(file)}
    try:
        return timm.create_model(
            source.architecture, pretrained=True, **{**source.options, "pretrained_cfg_overlay": overlay}
        )
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise PsaqError(f"model {source.name!r}: timm cannot build it with {source.options} ({error})") from error


def _published_weights(source: ModelSource) -> Path:
    """The hub's safetensors file, from the local cache where it is there: pickled weights are never read."""
    config = timm.models.get_pretrained_cfg(source.architecture)
    hub_id = getattr(config, "hf_hub_id", None)
    if not hub_id:
        raise PsaqError(f"model {source.name!r}: timm publishes no weights for it; give a file with --weights FILE")
    # A lookup that cannot succeed would be retried for most of a minute before it failed.
    offline = not _hub_can_be_found()
    try:
        return Path(huggingface_hub.hf_hub_download(hub_id, "model.safetensors", local_files_only=offline))
    except (
        OSError,
        huggingface_hub.errors.HfHubHTTPError,
        huggingface_hub.errors.EntryNotFoundError,
    ) as error:
        raise PsaqError(
            f"model {source.name!r}: its weights ({hub_id}) are not in the local cache and the hub cannot be reached. "
            "Either connect to the network once, or give a local safetensors file with --weights FILE"
        ) from error


def _hub_can_be_found() -> bool:
    if urllib.request.getproxies():
        return True
    host = urllib.parse.urlparse(huggingface_hub.constants.ENDPOINT).hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True

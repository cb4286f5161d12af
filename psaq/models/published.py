"""Weights that timm publishes on the Hugging Face hub, by way of the local cache."""

import socket
import urllib.parse
import urllib.request
from pathlib import Path

import huggingface_hub
import timm
from torch import nn

from psaq.errors import PsaqError
from psaq.models.sources import ModelSource, remember
from psaq.models.transformers_library import first_line


def published_model(source: ModelSource) -> nn.Module:
    """A timm model with its published weights. Raises PsaqError where there is no way to get them."""
    file = _published_weights(source)
    overlay = {**source.options.get("pretrained_cfg_overlay", {}), "file": str(file)}
    try:
        model = timm.create_model(
            source.architecture, pretrained=True, **{**source.options, "pretrained_cfg_overlay": overlay}
        )
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise PsaqError(f"model {source.name!r}: timm cannot build it with {source.options} ({error})") from error
    return remember(model, source)


def hub_can_be_found() -> bool:
    """Whether the hub has an address: a lookup that cannot succeed would be retried for most of a minute."""
    if urllib.request.getproxies():
        return True
    host = urllib.parse.urlparse(huggingface_hub.constants.ENDPOINT).hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


def _published_weights(source: ModelSource) -> Path:
    """The hub's safetensors file, from the local cache where it is there: pickled weights are never read."""
    config = timm.models.get_pretrained_cfg(source.architecture)
    hub_id = getattr(config, "hf_hub_id", None)
    if not hub_id:
        raise PsaqError(f"model {source.name!r}: timm publishes no weights for it; give a file with --weights FILE")
    offline = not hub_can_be_found()
    try:
        return Path(huggingface_hub.hf_hub_download(hub_id, "model.safetensors", local_files_only=offline))
    except huggingface_hub.errors.LocalEntryNotFoundError as error:
        raise PsaqError(
            f"model {source.name!r}: its weights ({hub_id}) are not in the local cache and the hub cannot be reached. "
            "Either connect to the network once, or give a local file with --weights FILE"
        ) from error
    except (OSError, huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.EntryNotFoundError) as error:
        raise PsaqError(
            f"model {source.name!r}: the hub does not give its weights ({hub_id}): {first_line(error)}. Give a local "
            "file with --weights FILE"
        ) from error

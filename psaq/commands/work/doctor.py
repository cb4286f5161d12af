"""What ``psaq doctor`` does."""

import importlib.util
import os

import huggingface_hub
import torch
from timm.models import get_pretrained_cfg

from psaq.commands.doctor import Doctor
from psaq.models.zoo import TABLE1_MODELS
from psaq.runs import device_name, versions
from psaq_kernels.processor import BYTE, SEVEN_BITS, dot_products, largest_exact_weight


def run(options: Doctor) -> None:
    for name, value in findings(options).items():
        print(f"{name:<12} {value}")


def findings(options: Doctor) -> dict[str, str]:
    """What was found, a line each."""
    return versions() | {
        "device": device_name(),
        "processors": f"{os.cpu_count()} ({torch.get_num_threads()} threads used)",
        "backend": _backend(),
        "integers": _integers(),
        **{name: _weights(tag) for name, tag in TABLE1_MODELS.items()},
    }


def _backend() -> str:
    if not torch.cuda.is_available():
        return "torch (no CUDA or ROCm device)"
    if importlib.util.find_spec("triton") is None:
        return "torch (Triton is not installed)"
    return "triton"


def _integers() -> str:
    """How a deployed model multiplies on the processor: what oneDNN's sums were when they were tried."""
    found = ", ".join(dot_products()) or "no 8-bit dot products"
    exact = largest_exact_weight()
    if exact == BYTE:
        return f"oneDNN ({found})"
    if exact == SEVEN_BITS:
        return f"oneDNN up to 7-bit weights; it would sum wider ones wrongly here, so these go in float32 ({found})"
    return "float32 products of the integers (oneDNN has none of bytes that are right here)"


def _weights(tag: str) -> str:
    """Whether a model's published weights are in the hub's cache; no network is asked."""
    repository = get_pretrained_cfg(tag).hf_hub_id
    found = huggingface_hub.try_to_load_from_cache(repository, "model.safetensors")
    return f"{tag}: weights in the cache" if isinstance(found, str) else f"{tag}: weights not here; --weights FILE"

"""Which backend runs an operation: Triton on a CUDA or ROCm device, torch elsewhere."""

import importlib.util
import os

import torch

BACKENDS = ("triton", "torch")


class BackendError(RuntimeError):
    """A backend that was asked for by name cannot run here."""


def choose_backend(requested: str | None, device: torch.device) -> str:
    """The backend for tensors on ``device``: the requested one, or the best that can run.

    Raises:
        ValueError: ``requested`` is no backend.
        BackendError: the requested backend cannot run on ``device``; the message says why.
    """
    if requested not in (None, *BACKENDS):
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)} or None, got {requested!r}")
    if requested == "torch":
        return "torch"
    obstacle = triton_obstacle(device)
    if requested == "triton" and obstacle:
        raise BackendError(f'backend="triton" cannot run: {obstacle}; use backend="torch" or leave it out')
    return "torch" if obstacle or (interpreting(device) and requested is None) else "triton"


def triton_obstacle(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on tensors of ``device``; None where they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device.type != "cuda" and not interpreting(device):
        return f"the tensors are on {device.type}, and Triton needs a CUDA or ROCm device"
    return None


def interpreting(device: torch.device) -> bool:
    """Whether Triton's interpreter (TRITON_INTERPRET=1) would run kernels on CPU tensors."""
    return device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"

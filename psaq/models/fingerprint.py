"""Which weights a model has: the same architecture trained otherwise is another model."""

import hashlib

import torch
from torch import nn


def fingerprint(model: nn.Module) -> str:
    """A digest of the names and bits of all weights and buffers, 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

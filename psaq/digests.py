"""What a file says its content is: SHA-256 digests, by which damage is seen and named."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

WHOLE, PARTS = "sha256", "sha256_parts"
_SHORT = 8
"""Digits of a tensor's own digest that are kept, only to say which tensor differs."""


def tensor_digests(tensors: Mapping[str, Tensor], text: str) -> dict[str, str]:
    """The SHA-256 of named tensors and ``text``, and the beginnings of the tensors' own in the order of their names."""
    own = [_of_tensor(name, tensors[name]) for name in sorted(tensors)]
    whole = hashlib.sha256("\n".join([text, *own]).encode()).hexdigest()
    return {WHOLE: whole, PARTS: "".join(digest[:_SHORT] for digest in own)}


def what_differs(stated: Mapping[str, str], tensors: Mapping[str, Tensor], text: str) -> str | None:
    """What of a file is not as it was written, by what it states of itself; None where all is."""
    found = tensor_digests(tensors, text)
    if stated.get(WHOLE) == found[WHOLE] and stated.get(PARTS) == found[PARTS]:
        return None
    before, now = (_cut(digests.get(PARTS, "")) for digests in (stated, found))
    if len(before) != len(now):
        return f"it holds {len(now)} tensors of {len(before)}"
    changed = [name for name, was, is_ in zip(sorted(tensors), before, now, strict=True) if was != is_]
    return f"tensor {', '.join(changed[:3])}" if changed else "its metadata"


def json_digest(content: Any) -> str:
    """The SHA-256 of what JSON holds, however it is indented or ordered."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _of_tensor(name: str, tensor: Tensor) -> str:
    whole = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{name}\n{whole.dtype}\n{tuple(whole.shape)}\n".encode())
    flat = whole.as_strided((whole.numel(),), (1,))  # of one element, torch calls any stride contiguous
    content: Any = flat.view(torch.uint8).numpy()
    digest.update(content)
    return digest.hexdigest()


def _cut(parts: str) -> list[str]:
    return [parts[start : start + _SHORT] for start in range(0, len(parts), _SHORT)]

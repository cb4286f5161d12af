"""Keys of compiled kernels that do not depend on what ran before."""

from collections.abc import Mapping
from typing import Any


def settle_keys(namespace: Mapping[str, Any]) -> None:
    """Let every jitted function of a module be hashed now, callees before their callers.

    Triton 3.6 leaves a callee's constants out of a kernel's hash where the callee has not been hashed itself: the first
    kernel of a process to call it is then compiled under another name than in the next process, and what was compiled
    beforehand is not found. A module calls this as it ends. Under Triton's interpreter nothing is hashed.
    """
    for value in list(namespace.values()):
        getattr(value, "cache_key", None)

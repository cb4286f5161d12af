"""Random numbers that depend on where they are used, not on what was drawn before.

So a run that was stopped goes on with the numbers it would have drawn, and batches may be made in any order.
"""

import hashlib

import torch


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by ``key``: the run's seed, the batch, the purpose, the step."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)

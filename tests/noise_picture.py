"""A picture of noise, the same one for the same seed."""

import numpy as np
from PIL import Image


def noise_picture(size: tuple[int, int], seed: int) -> Image.Image:
    """Grey noise of (width, height), as RGB; a larger seed draws it with more contrast, too."""
    draws = np.random.default_rng(seed).normal(128, seed, size[::-1])
    return Image.fromarray(draws.clip(0, 255).astype(np.uint8)).convert("RGB")

"""Quantise vision transformers with no data, fast."""

from psaq.errors import PsaqError
from psaq.images.batches import gaussian_images
from psaq.images.synthetic import SyntheticImages, load_images
from psaq.models.features import patch_features
from psaq.models.zoo import load_model
from psaq.synthesis import SynthesisConfig, synthesize

__all__ = [
    "PsaqError",
    "SynthesisConfig",
    "SyntheticImages",
    "gaussian_images",
    "load_images",
    "load_model",
    "patch_features",
    "synthesize",
]

"""Quantise vision transformers with no data, fast."""

from psaq.density import DensityCurves, patch_similarity_density
from psaq.errors import PsaqError
from psaq.evaluation import Report, evaluate
from psaq.images.batches import gaussian_images
from psaq.images.imagenet import imagenet
from psaq.images.scenes import SceneDataset
from psaq.images.synthetic import SyntheticImages, load_images
from psaq.models.description import describe
from psaq.models.features import patch_features
from psaq.models.zoo import load_model
from psaq.quantization.calibration import quantize
from psaq.quantization.checkpoint import load, save
from psaq.quantization.deploy import IntegerModel, deploy
from psaq.quantization.recipes import Recipe
from psaq.quantization.sensitivity import LayerSensitivity, Sensitivity, sensitivity
from psaq.quantization.simulate import simulate
from psaq.synthesis import SynthesisConfig, synthesize

__all__ = [
    "DensityCurves",
    "IntegerModel",
    "LayerSensitivity",
    "PsaqError",
    "Recipe",
    "Report",
    "SceneDataset",
    "Sensitivity",
    "SynthesisConfig",
    "SyntheticImages",
    "deploy",
    "describe",
    "evaluate",
    "gaussian_images",
    "imagenet",
    "load",
    "load_images",
    "load_model",
    "patch_features",
    "patch_similarity_density",
    "quantize",
    "save",
    "sensitivity",
    "simulate",
    "synthesize",
]

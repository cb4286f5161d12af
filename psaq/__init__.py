"""Quantise vision transformers with no data, fast."""

from typing import TYPE_CHECKING

from psaq.lazy import names_on_demand
from psaq.quantization.hugging_face.registration import register_with_transformers

if TYPE_CHECKING:
    from psaq.density import DensityCurves, patch_similarity_density
    from psaq.errors import PsaqError
    from psaq.evaluation import evaluate
    from psaq.evolution import EvolutionConfig, evolve
    from psaq.images.batches import gaussian_images
    from psaq.images.coco import coco
    from psaq.images.imagenet import imagenet
    from psaq.images.masks import segmentation
    from psaq.images.scenes import SceneDataset
    from psaq.images.synthetic import SyntheticImages, load_images
    from psaq.models.description import describe
    from psaq.models.features import patch_features
    from psaq.models.zoo import load_model
    from psaq.quantization.checkpoint import load, save
    from psaq.quantization.deployment.capture import capture
    from psaq.quantization.deployment.captured import CapturedModel
    from psaq.quantization.deployment.deploy import IntegerModel, deploy
    from psaq.quantization.deployment.simulate import simulate
    from psaq.quantization.pipeline import left_out, quantize
    from psaq.quantization.recipes import Recipe
    from psaq.quantization.sensitivity import LayerSensitivity, Sensitivity, sensitivity
    from psaq.synthesis import SynthesisConfig, synthesize
    from psaq.tasks.classification import Report
    from psaq.tasks.detection import DetectionReport
    from psaq.tasks.pictures import draw_predictions
    from psaq.tasks.segmentation import SegmentationReport

_HOMES = {
    "psaq.density": ("DensityCurves", "patch_similarity_density"),
    "psaq.errors": ("PsaqError",),
    "psaq.evaluation": ("evaluate",),
    "psaq.evolution": ("EvolutionConfig", "evolve"),
    "psaq.images.batches": ("gaussian_images",),
    "psaq.images.coco": ("coco",),
    "psaq.images.imagenet": ("imagenet",),
    "psaq.images.masks": ("segmentation",),
    "psaq.images.scenes": ("SceneDataset",),
    "psaq.images.synthetic": ("SyntheticImages", "load_images"),
    "psaq.models.description": ("describe",),
    "psaq.models.features": ("patch_features",),
    "psaq.models.zoo": ("load_model",),
    "psaq.quantization.checkpoint": ("load", "save"),
    "psaq.quantization.deployment.capture": ("capture",),
    "psaq.quantization.deployment.captured": ("CapturedModel",),
    "psaq.quantization.deployment.deploy": ("IntegerModel", "deploy"),
    "psaq.quantization.deployment.simulate": ("simulate",),
    "psaq.quantization.pipeline": ("left_out", "quantize"),
    "psaq.quantization.recipes": ("Recipe",),
    "psaq.quantization.sensitivity": ("LayerSensitivity", "Sensitivity", "sensitivity"),
    "psaq.synthesis": ("SynthesisConfig", "synthesize"),
    "psaq.tasks.classification": ("Report",),
    "psaq.tasks.detection": ("DetectionReport",),
    "psaq.tasks.pictures": ("draw_predictions",),
    "psaq.tasks.segmentation": ("SegmentationReport",),
}
"""Module → its public names; it is imported when one of them is first used, so that ``import psaq`` is quick."""

__all__ = [
    "CapturedModel",
    "DensityCurves",
    "DetectionReport",
    "EvolutionConfig",
    "IntegerModel",
    "LayerSensitivity",
    "PsaqError",
    "Recipe",
    "Report",
    "SceneDataset",
    "SegmentationReport",
    "Sensitivity",
    "SynthesisConfig",
    "SyntheticImages",
    "capture",
    "coco",
    "deploy",
    "describe",
    "draw_predictions",
    "evaluate",
    "evolve",
    "gaussian_images",
    "imagenet",
    "left_out",
    "load",
    "load_images",
    "load_model",
    "patch_features",
    "patch_similarity_density",
    "quantize",
    "save",
    "segmentation",
    "sensitivity",
    "simulate",
    "synthesize",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = names_on_demand(__name__, _HOMES)

register_with_transformers()

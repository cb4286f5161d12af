"""Quantise vision transformers with no data, fast."""

from psaq.density import DensityCurves, patch_similarity_density
from psaq.errors import PsaqError
from psaq.evaluation import evaluate
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
from psaq.quantization.deployment.cuda_graph import CapturedModel, capture
from psaq.quantization.deployment.deploy import IntegerModel, deploy
from psaq.quantization.deployment.simulate import simulate
from psaq.quantization.hugging_face.registration import register_with_transformers
from psaq.quantization.pipeline import left_out, quantize
from psaq.quantization.recipes import Recipe
from psaq.quantization.sensitivity import LayerSensitivity, Sensitivity, sensitivity
from psaq.synthesis import SynthesisConfig, synthesize
from psaq.tasks.classification import Report
from psaq.tasks.detection import DetectionReport
from psaq.tasks.pictures import draw_predictions
from psaq.tasks.segmentation import SegmentationReport

__all__ = [
    "CapturedModel",
    "DensityCurves",
    "DetectionReport",
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

register_with_transformers()

"""The bundled models: small timm transformers trained on procedural scenes, for demonstrations and tests.

`psaq.training.train` trains them; the JSON beside each weight file records how, and what was reached.
"""

from pathlib import Path
from typing import Any

from psaq.errors import PsaqError
from psaq.rendering.painter import CLASS_NAMES, SIZE

_PREPROCESSING = {
    "input_size": [3, SIZE, SIZE],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "crop_pct": 1.0,
    "num_classes": len(CLASS_NAMES),
    "label_names": list(CLASS_NAMES),
}

_COMMON = {"img_size": SIZE, "num_classes": len(CLASS_NAMES), "pretrained_cfg_overlay": _PREPROCESSING}

MICRO_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "micro_vit": (
        "vit_tiny_patch16_224",
        {"patch_size": 8, "embed_dim": 96, "depth": 6, "num_heads": 3, **_COMMON},
    ),
    "micro_swin": (
        "swin_tiny_patch4_window7_224",
        {"patch_size": 4, "window_size": 4, "embed_dim": 32, "depths": [2, 4], "num_heads": [2, 4], **_COMMON},
    ),
}
"""Name → (timm architecture, options for ``timm.create_model``; JSON types only)."""

MICRO_DENSE = ("micro_segmenter", "micro_detector")
"""The models of pixels and boxes, which `psaq.models.micro.dense` builds."""


def micro_architecture(name: str) -> tuple[str, dict[str, Any]]:
    """The timm architecture of a bundled model and its options. Raises PsaqError for another name."""
    if name not in MICRO_MODELS:
        raise PsaqError(
            f"model {name!r}: is not bundled; the bundled ones are {', '.join([*MICRO_MODELS, *MICRO_DENSE])}"
        )
    architecture, options = MICRO_MODELS[name]
    return architecture, dict(options)


def micro_weights(name: str) -> Path:
    """The file with a bundled model's trained weights. Raises PsaqError for another name."""
    if name not in MICRO_DENSE:
        micro_architecture(name)
    return Path(__file__).parent / f"{name}.safetensors"


def micro_record(name: str) -> Path:
    """The JSON file that says how a bundled model was trained and what it reached."""
    return micro_weights(name).with_suffix(".json")

"""The names that psaq and timm know."""

from collections.abc import Mapping
from typing import Any

import timm

from psaq.errors import PsaqError
from psaq.models.micro import MICRO_DENSE, MICRO_MODELS, micro_architecture
from psaq.models.sources import ModelSource
from psaq.suggestions import did_you_mean

TABLE1_MODELS = {
    "vit_small": "vit_small_patch16_224.augreg_in21k_ft_in1k",
    "vit_base": "vit_base_patch16_224.augreg_in21k_ft_in1k",
    "deit_tiny": "deit_tiny_patch16_224.fb_in1k",
    "deit_small": "deit_small_patch16_224.fb_in1k",
    "deit_base": "deit_base_patch16_224.fb_in1k",
    "swin_tiny": "swin_tiny_patch4_window7_224.ms_in1k",
    "swin_small": "swin_small_patch4_window7_224.ms_in1k",
}
"""Short name → the timm tag whose weights Table 1 was measured on (a bare name resolves to others)."""


def timm_source(name: str, architecture: Mapping[str, Any] | None = None) -> ModelSource:
    """What a name of psaq's or timm's stands for. Raises PsaqError where neither knows it."""
    options = dict(architecture or {})
    if name in MICRO_MODELS:
        tag, micro_options = micro_architecture(name)
        return ModelSource(name, tag, {**micro_options, **options})
    if name in MICRO_DENSE:
        if options:
            raise PsaqError(f"model {name!r}: is bundled as it is; leave {', '.join(options)} out")
        return ModelSource(name, name, kind="micro")
    tag = TABLE1_MODELS.get(name, name)
    if not timm.is_model(tag.split(".")[0]):
        known = [*TABLE1_MODELS, *MICRO_MODELS, *MICRO_DENSE]
        raise PsaqError(
            f"model {name!r}: neither psaq nor timm knows it{_meant(name, known)}; psaq's own names are "
            f"{', '.join(known)}; others are transformers:NAME-OR-FOLDER and FILE.py:FUNCTION"
        )
    return ModelSource(name, tag, options)


def _meant(name: str, own: list[str]) -> str:
    """psaq's name or, where none is near, timm's, its tag as it was given."""
    architecture, dot, tag = name.partition(".")
    return did_you_mean(name, [*own, *(f"{known}{dot}{tag}" for known in timm.list_models())]) if architecture else ""

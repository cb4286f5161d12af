"""The names that psaq and timm know."""

from collections.abc import Mapping
from typing import Any

import timm

from psaq.errors import PsaqError
from psaq.models.micro import MICRO_DENSE, MICRO_MODELS, micro_architecture
from psaq.models.sources import ModelSource
from psaq.models.table1_models import TABLE1_MODELS
from psaq.suggestions import did_you_mean


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

"""transformers' own classes and configurations: found by name, built again, never with code from elsewhere."""

import importlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from psaq.errors import PsaqError

# Keys by which a configuration names code or weights that lie elsewhere, or folders of the machine it was made on.
_ELSEWHERE = {"auto_map", "custom_pipelines", "_name_or_path", "quantization_config"}
_ATTENTION = ("sdpa", "eager")


def library() -> Any:
    """The transformers package. Raises PsaqError where it is missing or too old."""
    if importlib.util.find_spec("transformers") is None:
        raise PsaqError("transformers is not installed; pip install 'psaq[transformers]'")
    package = importlib.import_module("transformers")
    if int(package.__version__.split(".")[0]) < 5:
        raise PsaqError(f"transformers {package.__version__}: psaq needs 5 or newer; pip install 'psaq[transformers]'")
    return package


def exported_class(name: str) -> type[nn.Module] | None:
    """The model class that transformers exports under a name; None for anything else."""
    package = library()
    found = getattr(package, name, None)
    if not isinstance(found, type) or not issubclass(found, package.PreTrainedModel):
        return None
    return found if found.__module__.startswith("transformers.models.") else None


def build_transformers(name: str, architecture: str, options: Mapping[str, Any]) -> nn.Module:
    """A model of transformers with fresh weights, from its class's name and `described_config`.

    Raises:
        PsaqError: transformers has no such class, or it refuses the configuration.
    """
    architecture_class: Any = exported_class(architecture)
    if architecture_class is None:
        raise PsaqError(f"model {name!r}: transformers has no model {architecture!r}; upgrade transformers")
    try:
        config = architecture_class.config_class.from_dict(without_elsewhere(options["config"]))
        attention = {part: name for part, name in options.get("attention", {}).items() if name in _ATTENTION}
        with quietly():
            return architecture_class._from_config(config, attn_implementation=attention)
    except Exception as error:  # every class checks its configuration in its own way
        raise PsaqError(
            f"model {name!r}: transformers cannot build {architecture} from its configuration ({first_line(error)})"
        ) from error


def described_config(config: Any, model: nn.Module | None = None) -> dict[str, Any]:
    """Options for `build_transformers`: a configuration as JSON, with the type of the model's weights."""
    described = without_elsewhere(json.loads(config.to_json_string(use_diff=False)))
    if model is not None:
        described["dtype"] = str(next(model.parameters()).dtype).removeprefix("torch.")
    return {"config": described, "attention": attention_of(config)}


def attention_of(config: Any) -> dict[str, str]:
    """Which of transformers' attentions each part of a model uses, "" being the whole."""
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    used = {name: getattr(part, "_attn_implementation", None) for name, part in {"": config, **parts}.items()}
    return {name: attention for name, attention in used.items() if attention in _ATTENTION}


@contextmanager
def quietly() -> Iterator[None]:
    """Keep transformers' reports and bars back: what matters in them becomes an error of psaq's."""
    logging = library().utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def without_elsewhere(config: Any) -> Any:
    """A configuration, and those nested in it, without what would be fetched or run."""
    if isinstance(config, list):
        return [without_elsewhere(value) for value in config]
    if not isinstance(config, Mapping):
        return config
    kept = {key: value for key, value in config.items() if key not in _ELSEWHERE and "_implementation" not in key}
    return {key: without_elsewhere(value) for key, value in kept.items()}


def first_line(error: BaseException) -> str:
    """An error's message without its explanations."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)

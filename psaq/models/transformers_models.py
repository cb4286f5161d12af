"""``transformers:NAME-OR-FOLDER``: a model of transformers with its weights and its image processor's format."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from psaq.errors import PsaqError
from psaq.models.image_format import DataConfig, input_channels, square
from psaq.models.sources import ModelSource, remember
from psaq.models.transformers_data import processor_data
from psaq.models.transformers_hub import OWN_WAY, access_to, asked, check_for_safetensors, place_of
from psaq.models.transformers_library import described_config, exported_class, library
from psaq.models.weights import first_few
from psaq.progress import note

_RENAMED = {"num_classes": "num_labels", "img_size": "image_size"}


def transformers_model(name: str, options: Mapping[str, Any]) -> nn.Module:
    """The model of a folder or of the hub, from safetensors, by a class of transformers' own.

    Of a model that reads or is prompted as well as it sees, this is the part that sees.

    Raises:
        PsaqError: transformers is not there; no such folder or name; a model that needs code or pickles of its own;
            weights that are not exactly the model's.
    """
    place = place_of(name)
    config, architecture, whole = _architecture(name, options)
    check_for_safetensors(place, name)
    loading: dict[str, Any] = {"use_safetensors": True, "dtype": "auto", "output_loading_info": True}
    # Another shape is an error of psaq's, which names it.
    loading |= {"ignore_mismatched_sizes": True, **access_to(place)}
    model, report = asked(name, lambda: architecture.from_pretrained(place, config=config, **loading))
    _check_report(report, name, whole)
    source = ModelSource(name, type(model).__name__, described_config(model.config, model), "transformers")
    return formatted(remember(in_own_memory(model), source), name, options)


def transformers_source(name: str, options: Mapping[str, Any]) -> ModelSource:
    """How to build the model of a folder or of the hub. Raises PsaqError as `transformers_model`."""
    config, architecture, _ = _architecture(name, options)
    return ModelSource(name, architecture.__name__, described_config(config), "transformers")


def formatted(model: nn.Module, name: str, options: Mapping[str, Any]) -> nn.Module:
    """The model, which now knows what its image processor does, where one lies beside it."""
    data = _processor_format(name, input_channels(model))
    if data is not None:
        size = options.get("img_size")
        model.psaq_data = data if size is None else replace(data, image_size=square(size))  # type: ignore[assignment]
    return model


def in_own_memory(model: nn.Module) -> nn.Module:
    """Tensors mapped from a file lie at odd addresses, where products round otherwise, and change with the file."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model


def _architecture(name: str, options: Mapping[str, Any]) -> tuple[Any, Any, bool]:
    """The configuration, the class, and whether they are the whole of what was saved."""
    place, package = place_of(name), library()
    config = asked(name, lambda: package.AutoConfig.from_pretrained(place, **access_to(place)))
    stated = (getattr(config, "architectures", None) or [None])[0]
    named = stated or _default_class(config, name)
    seeing = f"{named.removesuffix('Model')}VisionModel"
    whole = not (named.endswith("Model") and hasattr(config, "vision_config") and exported_class(seeing))
    found = exported_class(named if whole else seeing)
    if found is None:
        raise PsaqError(f"model {name!r}: transformers has no model class {named}; upgrade it, {OWN_WAY}")
    if whole and hasattr(config, "text_config") and not named.endswith("ForImageClassification"):
        raise PsaqError(f"model {name!r}: {named} needs text beside images; pass the module that sees alone")
    return _with_options(config if whole else config.vision_config, options, name), found, whole


def _default_class(config: Any, name: str) -> str:
    """The class that AutoModel takes for a configuration that names none."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    found = MODEL_MAPPING_NAMES.get(config.model_type)
    if found is None:
        raise PsaqError(f"model {name!r}: AutoModel knows no class for {config.model_type!r}; {OWN_WAY[3:]}")
    return found if isinstance(found, str) else found[0]


def _with_options(config: Any, options: Mapping[str, Any], name: str) -> Any:
    for option, value in options.items():
        attribute = _RENAMED.get(option, option)
        if not hasattr(config, attribute):
            raise PsaqError(f"model {name!r}: {type(config).__name__} has no {attribute}; leave {option} out")
        setattr(config, attribute, value)
    return config


def _check_report(report: Mapping[str, Any], name: str, whole: bool) -> None:
    wrong = [f"{key} is missing" for key in sorted(report["missing_keys"])]
    wrong += [f"{key} is {tuple(there)}, not {tuple(wanted)}" for key, there, wanted in report["mismatched_keys"]]
    if whole:
        wrong += [f"{key} is left over" for key in sorted(report["unexpected_keys"])]
    if wrong:
        raise PsaqError(f"model {name!r}: its weights do not fit: {first_few(wrong)}. Take another folder, {OWN_WAY}")


def _processor_format(name: str, channels: int) -> DataConfig | None:
    from transformers.models.auto.image_processing_auto import get_image_processor_config

    place = place_of(name)
    offline = {"local_files_only": access_to(place)["local_files_only"]}
    if not asked(name, lambda: get_image_processor_config(place, **offline)):
        return None
    processor = asked(name, lambda: library().AutoImageProcessor.from_pretrained(place, **access_to(place)))
    if getattr(processor, "do_flip_channel_order", False):
        note(f"{name}: was trained on images with blue first; here it gets them with red first")
    return processor_data(processor, channels)

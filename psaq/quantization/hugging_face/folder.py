"""A quantised model of transformers as a folder, as ``save_pretrained`` would write it."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from psaq.errors import PsaqError
from psaq.files import make_folder, save_tensors, write_json
from psaq.models.data import data_config
from psaq.models.image_format import DataConfig
from psaq.models.transformers_data import INTERPOLATIONS, is_transformers, processor_class, processor_data
from psaq.models.transformers_library import without_elsewhere
from psaq.quantization.stored import KIND, contents, format_of

WEIGHTS, CONFIG, PROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"


def is_folder_for(qmodel: nn.Module, path: Path) -> bool:
    """Whether a model is to be written to ``path`` as a folder. Raises PsaqError where that is one and the model is
    none of transformers'."""
    if is_transformers(qmodel):
        return path.is_dir() or path.suffix != ".safetensors"
    if path.is_dir():
        raise PsaqError(f"{path}: is a folder, which only models of transformers are saved as; name a file in it")
    return False


def weights_file(path: Path) -> Path:
    """The file that holds a quantised model: ``path``, or the one in the folder ``path``."""
    if not path.is_dir():
        return path
    shards = len([*path.glob("model-*-of-*.safetensors")])
    if shards and not (path / WEIGHTS).exists():
        raise PsaqError(f"{path}: its weights are split over {shards} files; save it anew with psaq.save, into one")
    return path / WEIGHTS


def write_folder(qmodel: nn.Module, folder: Path) -> None:
    """Write weights, image processor and configuration, in this order: what has a configuration is complete."""
    tensors, header = contents(qmodel)
    configuration = _configuration(qmodel, header)
    make_folder(folder)
    save_tensors(folder / WEIGHTS, tensors, KIND, header, format_of(header))
    processor = _image_processor(qmodel)
    if processor is not None:
        write_json(folder / PROCESSOR, processor)
    write_json(folder / CONFIG, configuration)


def _configuration(qmodel: Any, header: dict[str, Any]) -> dict[str, Any]:
    """The model's own, with its class, its type and how it is quantised, and with no place or code from elsewhere."""
    from psaq.quantization.hugging_face.quantizer import quantization_config

    return {
        **without_elsewhere(json.loads(qmodel.config.to_json_string())),
        "architectures": [type(qmodel).__name__],
        "dtype": header["dtype"],
        "quantization_config": quantization_config(qmodel).to_dict(),
    }


def _image_processor(qmodel: Any) -> dict[str, Any] | None:
    """The configuration of an image processor that does to images what the model wants; None where transformers has
    none for its type, or none that does that."""
    kind = processor_class(qmodel.config.model_type)
    if kind is None:
        return None
    data = data_config(qmodel)
    for options in _processor_options(data):
        processor = kind(**options)
        read = processor_data(processor, data.channels)
        if read is not None and _agree(read, data):
            return json.loads(processor.to_json_string())
    return None


def _processor_options(data: DataConfig) -> Iterator[dict[str, Any]]:
    """As the type's processor does by default; images resized to their size; or resized and cropped."""
    yield {}
    sides = dict(zip(("height", "width"), data.image_size, strict=True))
    codes = {name: code for code, name in INTERPOLATIONS.items()}
    statistics = {"do_normalize": True, "image_mean": list(data.mean), "image_std": list(data.std)}
    pixels = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "resample": codes[data.interpolation]}
    yield {**statistics, **pixels, "size": sides, "do_center_crop": False}
    edge = {"shortest_edge": round(min(data.image_size) / data.crop_pct)}
    yield {**statistics, **pixels, "size": edge, "do_center_crop": True, "crop_size": sides}


def _agree(read: DataConfig, wanted: DataConfig) -> bool:
    """Whether two formats are one but for a crop's last pixel."""
    numbers = zip((*read.mean, *read.std), (*wanted.mean, *wanted.std), strict=True)
    same = read.image_size == wanted.image_size and read.interpolation == wanted.interpolation
    return same and all(math.isclose(a, b) for a, b in numbers) and abs(read.crop_pct - wanted.crop_pct) < 0.01

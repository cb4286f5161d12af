"""psaq among the quantisers of transformers: ``from_pretrained`` reads what `psaq.save` wrote, ``save_pretrained``
writes it. This imports transformers, so only what has it already imports this.

transformers builds the model without memory, this gives it its points, transformers fills it from the file, and on the
way integers become the weights that they stand for.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from psaq.errors import PsaqError
from psaq.files import NEWEST_FORMAT, OLDEST_FORMAT, file_metadata, load_tensors
from psaq.models.calling import takes
from psaq.models.sources import ModelSource
from psaq.models.transformers_library import attention_of
from psaq.models.transformers_models import in_own_memory
from psaq.quantization.model.conversion import with_own_layers
from psaq.quantization.model.points import WEIGHT, live_points
from psaq.quantization.quantizers.affine import AffineQuantizer
from psaq.quantization.recipes import Recipe
from psaq.quantization.sound import check_header
from psaq.quantization.stored import (
    KIND,
    add_structure,
    contents,
    data_of,
    errors_of,
    format_of,
    furnish,
    misfit,
    packed_shape,
    unpacked,
    weight_name,
    weights,
)

METHOD = "psaq"


class PsaqConfig(QuantizationConfigMixin):
    """The part of a configuration that says that psaq quantised the model, and how.

    Args:
        recipe: a `Recipe` as JSON.
        attention: by which of transformers' attentions each part of the model was run, "" being the whole.
        format_version: of the file beside it.

    Raises:
        PsaqError: another version, or no recipe.
    """

    def __init__(
        self,
        recipe: Mapping[str, Any] | None = None,
        attention: Mapping[str, str] | None = None,
        format_version: int = 0,
        **_: Any,
    ):
        self.quant_method = METHOD
        if format_version not in range(OLDEST_FORMAT, NEWEST_FORMAT + 1):
            raise PsaqError(
                f"quantization_config: has format {format_version!r}, and {OLDEST_FORMAT} to {NEWEST_FORMAT} are read; "
                "upgrade psaq, or save the model anew"
            )
        if not recipe:
            raise PsaqError("quantization_config: has no recipe; save the model anew with psaq.save")
        self.format_version = format_version
        self.recipe = _checked(recipe)
        self.attention = dict(attention or {})


class PsaqQuantizer(HfQuantizer):
    """How transformers loads and saves a model that psaq quantised."""

    quantization_config: PsaqConfig

    def __init__(self, quantization_config: PsaqConfig, **kwargs: Any):
        super().__init__(quantization_config, **kwargs)
        self._dtype: torch.dtype | None = None

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Raises PsaqError where a model is to be quantised on the way."""
        if not self.pre_quantized:
            raise PsaqError("psaq quantises with calibration images: psaq.quantize(model, images, recipe)")

    def update_attn_implementation(self, config: Any) -> Any:
        """The attention that the points were found in; another one calls the framework otherwise."""
        wanted, asked_for = self.quantization_config.attention, getattr(config, "_attn_implementation", None)
        if asked_for not in (None, wanted.get("", asked_for)):
            raise PsaqError(
                f"attn_implementation={asked_for!r}: the model was quantised with {wanted['']!r}; leave it out"
            )
        config._attn_implementation = wanted
        return config

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any) -> list[Any]:
        """The file has the model's own names: nothing is to be renamed or merged."""
        return self.get_weight_conversions()

    def get_weight_conversions(self) -> list[Any]:
        """What is to be done to tensors on their way into the model."""
        return [WeightConverter([r"\.weight$"], [".weight"], [_Unpack()])]

    @torch.no_grad()
    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Iterable[str] = (), dtype: torch.dtype | None = None, **_: Any
    ) -> Any:
        path = _only(checkpoint_files)
        tensors, header = load_tensors(path, KIND)
        with errors_of(path):
            check_header(header)
            self._check_origin(model, header)
            _remember(model, header)
            with_own_layers(model)
            model.all_tied_weights_keys = {}
            add_structure(model, header)
            furnish(model, tensors, header)
            _check_shapes(model, tensors)
        self._dtype = dtype
        return model

    @torch.no_grad()
    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        for module in model.modules():
            if isinstance(module, AffineQuantizer) and module.symmetric:
                module.zero_point.zero_()  # no file holds it
                module.scale = module.scale.float()  # of groups, a file holds it in half precision
        model._weight_conversions = []  # none is to be undone by save_pretrained
        return in_own_memory(nn.Module.to(model, self._dtype))

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What `psaq.save` writes."""
        tensors, header = contents(model)
        return tensors, file_metadata(KIND, header, tensors, format_of(header))

    def is_serializable(self) -> bool:
        """``save_pretrained`` writes what ``from_pretrained`` reads."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Gradients pass the quantisers."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Training sees what quantisation does."""
        return True

    @property
    def is_compileable(self) -> bool:
        """torch.compile takes the model in one graph."""
        return True

    def _check_origin(self, model: nn.Module, header: Mapping[str, Any]) -> None:
        if self.quantization_config.recipe != _checked(header["recipe"]):
            raise PsaqError("is of another recipe than the config.json beside it; save the model anew")
        saved = (header["model"] or {}).get("architecture", type(model).__name__)
        if saved != type(model).__name__:
            raise PsaqError(
                f"holds a {saved}, and its parts alone compute something else: it cannot be loaded as a "
                f"{type(model).__name__}. Load it as what it is, or quantise a {type(model).__name__}"
            )


class _Unpack(ConversionOps):
    """Stored integers to the weight that they stand for; any other weight stays."""

    def convert(self, input_dict: dict[str, Any], *_: Any, **kwargs: Any) -> dict[str, Tensor]:
        model, name = kwargs["model"], kwargs["full_layer_name"]
        ((tensor,),) = input_dict.values()
        layer = name.removesuffix(".weight")
        if not isinstance(getattr(model.get_submodule(layer), WEIGHT, None), AffineQuantizer):
            return {name: tensor}
        weights = dict(unpacked(model, {name: tensor.cpu()}, [f"{layer}.{WEIGHT}"]))
        return {name: weights[name].to(tensor.device, model.get_parameter(name).dtype)}


def register() -> None:
    """Make transformers know the method; a second time does nothing."""
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(METHOD)(PsaqQuantizer)
    if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(METHOD)(PsaqConfig)


def quantization_config(qmodel: Any) -> PsaqConfig:
    """What the configuration of a quantised model says of psaq."""
    recipe = qmodel.psaq_recipe.stored
    return PsaqConfig(recipe, attention_of(qmodel.config), format_of({"recipe": recipe}))


def give_quantizer(qmodel: Any) -> None:
    """Let a quantised model's own ``save_pretrained`` write it as `psaq.save` does."""
    qmodel.hf_quantizer = PsaqQuantizer(quantization_config(qmodel))
    qmodel.config.quantization_config = qmodel.hf_quantizer.quantization_config
    qmodel.all_tied_weights_keys = {}
    qmodel._weight_conversions = []  # as from_pretrained notes it: what is saved keeps the model's own names


def _checked(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as JSON has it. Raises PsaqError where it is none."""
    try:
        return json.loads(json.dumps(Recipe(**recipe).stored))
    except TypeError as error:
        raise PsaqError(f"recipe: is damaged ({error}); save the model anew with psaq.save") from error


def _only(files: Iterable[str]) -> Path:
    paths = [Path(file) for file in files]
    if len(paths) != 1:
        raise PsaqError(f"{paths[0].parent}: its weights are split over {len(paths)} files; save it anew, into one")
    return paths[0]


def _remember(model: Any, header: Mapping[str, Any]) -> None:
    """What the model can no longer say once its class has points."""
    if header["model"] is not None:
        model.psaq_source = ModelSource(**header["model"])
    model.psaq_data = data_of(header)
    model.psaq_takes = takes(model)


def _check_shapes(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    expected: dict[str, tuple[int, ...]] = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    expected |= {weight_name(point): packed_shape(model, point) for point in weights(live_points(model))}
    stored = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted({*expected, *stored}):
        if expected.get(name) != stored.get(name):
            raise misfit(model, f"{name} is {stored.get(name, 'absent')}, not {expected.get(name, 'wanted')}")

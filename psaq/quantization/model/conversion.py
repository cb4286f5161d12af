"""From a timm vision transformer to the same model with quantisation points, all of them off."""

import copy

from timm import layers as timm_layers
from timm.layers import AttentionPoolLatent
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import (
    PatchMerging,
    SwinTransformer,
    SwinTransformerBlock,
    SwinTransformerStage,
    WindowAttention,
)
from timm.models.vision_transformer import Attention, Block, LayerScale, ResPostBlock, VisionTransformer
from torch import nn

from psaq.errors import PsaqError
from psaq.models.features import attention_layers
from psaq.quantization.model.attention import QuantAttention, QuantAttentionPoolLatent, QuantWindowAttention
from psaq.quantization.model.layers import QuantConv2d, QuantLinear
from psaq.quantization.model.points import Point, Quantized
from psaq.quantization.model.swin import QuantSwinBlock, QuantSwinTransformer
from psaq.quantization.model.vit import (
    QuantBlock,
    QuantResPostBlock,
    QuantVisionTransformer,
    QuantVisionTransformerDistilled,
)

QUANTIZED: dict[type[nn.Module], type[Quantized]] = {
    nn.Linear: QuantLinear,
    nn.Conv2d: QuantConv2d,
    Attention: QuantAttention,
    AttentionPoolLatent: QuantAttentionPoolLatent,
    Block: QuantBlock,
    ResPostBlock: QuantResPostBlock,
    VisionTransformer: QuantVisionTransformer,
    VisionTransformerDistilled: QuantVisionTransformerDistilled,
    WindowAttention: QuantWindowAttention,
    SwinTransformerBlock: QuantSwinBlock,
    SwinTransformer: QuantSwinTransformer,
}
"""Module type → the same type with points."""

_UNCHANGED: tuple[type[nn.Module], ...] = (
    nn.Sequential,
    nn.LayerNorm,
    LayerScale,
    PatchMerging,
    SwinTransformerStage,
    timm_layers.ClassifierHead,
    timm_layers.GluMlp,
    timm_layers.LayerNorm,
    timm_layers.Mlp,
    timm_layers.PatchEmbed,
    timm_layers.RmsNorm,
    timm_layers.SelectAdaptivePool2d,
    timm_layers.SwiGLU,
)
"""Types that need no points: the products they hold are layers of their own, and norms stay in float."""


def converted(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in evaluation mode that computes the same, with every quantisation point off and nothing
    shared between its layers.

    Raises:
        PsaqError: it is quantised already, a module is of a type that psaq cannot walk, or there is no attention.
    """
    if isinstance(model, Quantized):
        raise PsaqError(f"{type(model).__name__}: is quantised already; pass the model that it was made from")
    model = _untied(copy.deepcopy(model).eval())
    attention_layers(model)
    for name, module in list(model.named_modules()):
        if type(module) in QUANTIZED:
            _add_points(module, QUANTIZED[type(module)])
        elif not _needs_no_points(module):
            raise PsaqError(_refusal(name, module))
    return model


def _untied(model: nn.Module) -> nn.Module:
    """The model with modules and parameters of its own in every place: one that is shared cannot be rescaled,
    rounded or given a range for one place alone."""
    modules, parameters = set(), set()
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module in modules:
            model.set_submodule(name, copy.deepcopy(module))
        modules.add(module)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter in parameters:
                setattr(module, name, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
            parameters.add(parameter)
    return model


def _add_points(module: nn.Module, quantized: type[Quantized]) -> None:
    module.__class__ = quantized
    for point in quantized.points:
        module.add_module(point, Point())


def _needs_no_points(module: nn.Module) -> bool:
    holds_nothing = not any(True for _ in module.children()) and not module.state_dict()
    return type(module) in _UNCHANGED or holds_nothing


def _refusal(name: str, module: nn.Module) -> str:
    known = ", ".join(sorted(kind.__name__ for kind in (*QUANTIZED, *_UNCHANGED)))
    what = f"module {name!r}" if name else "the model"
    return (
        f"{what}: psaq cannot quantise a {type(module).__module__}.{type(module).__qualname__}. It walks timm's "
        f"VisionTransformer, VisionTransformerDistilled and SwinTransformer made of {known}"
    )

"""What a deployed model computes, by fake quantisation: the reference that it is held to."""

import copy

import torch
from torch import Tensor, nn

from psaq.models.wrappers import innermost
from psaq.quantization.deployment.deploy import INTEGER, deploy, keep_settings
from psaq.quantization.deployment.integer import IntegerLayerNorm, IntegerLinear
from psaq.quantization.model.layers import PIXELS, out_of_sight
from psaq.quantization.model.points import Point


def simulate(qmodel: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The fake-quantised model with activations in ``dtype`` wherever `deploy` has them in ``dtype``.

    Every layer that deploys to integers is fake-quantised and sums in float32 instead, like the kernels' epilogues;
    between two layers that hand on levels its output stays in float32. In float32 this computes what ``qmodel``
    does. In half precision it says what the kernels cost apart from the rounding of activations: quantisation
    amplifies a change in the last bit to the size of its own noise, so that no half-precision model agrees closely
    with the float32 one.

    Args:
        qmodel: what `psaq.quantize` or `psaq.load` returned; left untouched.
        dtype: float32, float16 or bfloat16.

    Returns:
        A module for inference, from float32 images to logits in ``dtype``.

    Raises:
        PsaqError: as `deploy` does.
    """
    qmodel = innermost(qmodel)
    model = deploy(qmodel, dtype, "exact").model
    assert isinstance(model, nn.Module)
    integers = {name: layer for name, layer in model.named_modules() if isinstance(layer, _INTEGER)}
    for name, integer in integers.items():
        original = qmodel.get_submodule(name.removesuffix(f".{INTEGER}"))
        simulated = _simulated(integer, copy.deepcopy(original).float())
        keep_settings(original, simulated)
        model.set_submodule(name, simulated)
    return model.requires_grad_(False)


_INTEGER = (IntegerLinear, IntegerLayerNorm)


class SimulatedLayer(nn.Module):
    """A fake-quantised layer that computes in float32 and emits ``dtype``."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.layer = layer
        self.dtype = dtype

    @property
    def weight(self) -> Tensor:
        """Nothing but a type and a device, which models ask of a layer's weight."""
        return next(self.layer.parameters()).new_empty(0, dtype=self.dtype)

    @property
    def bias(self) -> Tensor | None:
        """Likewise, where the layer has one."""
        first = self.layer[0] if isinstance(self.layer, nn.Sequential) else self.layer
        return None if getattr(first, "bias", None) is None else self.weight

    def forward(self, x: Tensor) -> Tensor:
        with out_of_sight():
            return self.layer(x.float()).to(self.dtype)


def _simulated(integer: IntegerLinear | IntegerLayerNorm, layer: nn.Module) -> SimulatedLayer:
    if isinstance(integer, IntegerLayerNorm):
        return SimulatedLayer(layer, torch.float32)
    layer.output = Point()  # the model has it behind this layer, in its own type
    layer._modules.pop(PIXELS, None)  # and this before it
    if integer.emitted is None:
        return SimulatedLayer(layer, integer.dtype)
    return SimulatedLayer(nn.Sequential(layer, nn.GELU()), torch.float32)

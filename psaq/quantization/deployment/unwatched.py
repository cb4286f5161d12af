"""Models whose calls of the framework nobody need look at any more."""

from torch import nn

from psaq.models.subclassed import without
from psaq.quantization.model.conversion import lent_layers
from psaq.quantization.model.layers import QuantLayer
from psaq.quantization.model.watching import Watched, WatchedOutput


def stop_watching(model: nn.Module) -> None:
    """Where no point but those of layers is live and no layer is lent, take from all modules what looks on.

    To look at every call takes time, and it hides fused attention from those who trace it.
    """
    watched = [module for module in model.modules() if isinstance(module, Watched | WatchedOutput)]
    needed = any(isinstance(module, QuantLayer) or module.is_live(*module.point_names()) for module in watched)
    if needed or lent_layers(model):
        return
    for module in watched:
        without(module, (Watched, WatchedOutput))

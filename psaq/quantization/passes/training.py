"""Training what is quantised: which numbers move, how far, and that weights end on their grids."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.quantization.model.layers import QuantLayer
from psaq.quantization.model.points import WEIGHT, all_points, role
from psaq.quantization.quantizers.affine import Quantizer

_WARM_UP = 10  # steps
_SMALLEST = 1e-3  # of a step or range, as part of what it was
_LOOK_EVERY = 25  # steps, on a GPU, where a look at the loss waits for the device

Step = Callable[[Float[Tensor, ""]], None]


@dataclass(frozen=True)
class Rates:
    """How far a step of Adam moves what is trained, at the most."""

    weights: float = 0.02
    """As part of a quantisation step; at 0 weights stay where they were rounded to, and cost no gradient."""
    floats: float = 1.5e-3
    """As part of the root mean square of a bias or LayerNorm's parameter."""
    ranges: float = 1e-3
    """As part of an activation's step or range."""


@contextmanager
def trained(module: nn.Module, steps: int, name: str, rates: Rates = Rates()) -> Iterator[Step]:
    """Inside the block, what is yielded takes a loss and moves the module's numbers by Adam, ``steps`` times.

    Weights, biases, norms, and the steps and ranges of activations move, at ``rates`` that fall as a cosine.
    Afterwards weights lie on their grids, and what required a gradient before does so again.

    Args:
        name: what the module is called where training has to stop.

    Raises:
        PsaqError: the loss, or a number that moved, became NaN or infinite; with the step.
    """
    wanted: dict[Tensor, bool] = {parameter: parameter.requires_grad for parameter in module.parameters()}
    ranges = _ranges(module)
    floors = [_SMALLEST * tensor for tensor in ranges]
    optimizer = torch.optim.Adam(_groups(module, ranges, rates), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    losses: list[Tensor] = []

    def step(loss: Float[Tensor, ""]) -> None:
        losses.append(loss.detach())
        if loss.device.type == "cpu" or len(losses) % _LOOK_EVERY == 0:
            _check_finite(name, losses, [])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for tensor, floor in zip(ranges, floors, strict=True):
                tensor.clamp_(min=floor)

    try:
        with torch.enable_grad():
            yield step
        _check_finite(name, losses, [*wanted, *ranges])
    finally:
        for tensor in [*wanted, *ranges]:
            tensor.grad = None
            tensor.requires_grad_(wanted.get(tensor, False))
        put_on_grids(module)


def _check_finite(name: str, losses: list[Tensor], moved: list[Tensor]) -> None:
    """Raises PsaqError, naming the step, where a loss or what the last step moved is NaN or infinite."""
    recent = losses[-_LOOK_EVERY:]  # those before were looked at
    wrong = [len(losses) - len(recent) + index for index, loss in enumerate(recent, 1) if not loss.isfinite()]
    if not wrong and not all(bool(tensor.isfinite().all()) for tensor in moved):
        wrong = [len(losses)]
    if wrong:
        raise PsaqError(
            f"training of {name}: NaN or infinity at step {wrong[0]} (loss {float(losses[wrong[0] - 1])}); "
            "check images and weights, or train with fewer steps; the model that was given is as it was"
        )


def _ranges(module: nn.Module) -> list[Tensor]:
    """Steps and ranges of activations. Those of weights stay: on its grid a weight has no slope by them."""
    points = all_points(module)
    weights = {name for name in points if role(name) == WEIGHT}
    quantizers = [point for name, point in points.items() if name not in weights]
    return [tensor for point in quantizers if isinstance(point, Quantizer) for tensor in point.trainable()]


def _groups(module: nn.Module, ranges: list[Tensor], rates: Rates) -> list[dict[str, object]]:
    """What is trained, each with its rate; all else requires no gradient."""
    layers = [part for part in module.modules() if isinstance(part, QuantLayer) and part.is_live(WEIGHT)]
    steps = {layer.weight: float(layer.weight_quantizer.scale.mean()) for layer in layers}
    moved = {tensor: float(tensor.mean()) * rates.ranges for tensor in ranges}
    for parameter in module.parameters():
        size = float(parameter.detach().square().mean().sqrt())
        moved[parameter] = steps[parameter] * rates.weights if parameter in steps else size * rates.floats
        parameter.requires_grad_(parameter not in steps or rates.weights > 0)
    trained = [tensor for tensor in moved if tensor not in steps or rates.weights > 0]
    return [{"params": [tensor.requires_grad_(True)], "lr": moved[tensor]} for tensor in trained]


def _rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / _WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2


@torch.no_grad()
def put_on_grids(module: nn.Module) -> None:
    """Round the weights to their levels, as a file would hold them."""
    for part in module.modules():
        if isinstance(part, QuantLayer) and part.is_live(WEIGHT):
            part.weight.copy_(part.from_rows(part.weight_quantizer(part.rows(part.weight))))

"""What quantisation costs each layer: the signal-to-quantisation-noise ratio of its weights and activations."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf, log10

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.images.batches import CalibrationImages, batches_for
from psaq.models.calling import run
from psaq.models.place import type_of
from psaq.models.wrappers import innermost
from psaq.quantization.model.points import WEIGHT, live_points
from psaq.quantization.quantizers.affine import AffineQuantizer, Quantizer

_EXACT = 1e-11
"""Of a signal's energy: less noise is float32's own; in half precision a rounded number has eps² / 28 of it."""


def layer_sqnr(qmodel: nn.Module, images: CalibrationImages, *, batch_size: int = 32) -> dict[str, dict[str, float]]:
    """SQNR of each layer of a quantised model, in dB: 10 log10 (Σ x² / Σ (x − x̂)²).

    Args:
        qmodel: what `quantize` returned.
        images: normalised for the model; activations are those that these images cause.

    Returns:
        Layer → {"weights": dB, "activations": dB}, in the order of the model's modules. Of several activations of a
        layer, the one with the lowest ratio counts. Left out is what a layer does not quantise, and what lies on its
        levels already: pixels, and weights that the recipe rounded, whose error only the next layers show.

    Raises:
        PsaqError: the model has nothing quantised, or there are no images.
    """
    qmodel = innermost(qmodel)
    quantizers = {name: point for name, point in live_points(qmodel).items() if isinstance(point, Quantizer)}
    if not quantizers:
        raise PsaqError(f"{type(qmodel).__name__}: has nothing quantised; give what psaq.quantize returned")
    energies = {name: torch.zeros(2, dtype=torch.float64) for name in quantizers}
    with torch.no_grad(), _listening(quantizers, energies):
        for batch in batches_for(qmodel, images, batch_size):
            run(qmodel, batch)
    least = max(_EXACT, torch.finfo(type_of(qmodel)).eps ** 2 / 16)
    return _by_layer({name: _decibels(*energy) for name, energy in energies.items() if energy[1] > least * energy[0]})


class _Listening(AffineQuantizer):
    """A quantiser that adds up the energy of its signal and of its noise."""

    energy: Tensor

    def steps(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        steps = super().steps(x)
        _add(self.energy, x, steps.detach().double() * self._broadcast(self.scale, x))
        return steps


@contextmanager
def _listening(quantizers: dict[str, Quantizer], energies: dict[str, Tensor]) -> Iterator[None]:
    """Layers call a uniform quantiser's ``steps``, which no hook sees; of any other kind they call the module."""
    uniform = {name: point for name, point in quantizers.items() if isinstance(point, AffineQuantizer)}
    uneven = {name: point for name, point in quantizers.items() if name not in uniform}
    handles = [point.register_forward_hook(_adder(energies[name])) for name, point in uneven.items()]
    try:
        for name, quantizer in uniform.items():
            quantizer.__class__ = _Listening
            quantizer.energy = energies[name]
        yield
    finally:
        for handle in handles:
            handle.remove()
        for quantizer in uniform.values():
            quantizer.__class__ = AffineQuantizer
            del quantizer.energy


def _adder(energy: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    return lambda _, inputs, output: _add(energy, inputs[0], output)


def _add(energy: Float[Tensor, "2"], x: Tensor, quantised: Tensor) -> None:
    """Add Σ x² and Σ (x − x̂)²."""
    signal = x.detach().double()
    noise = quantised.detach() - signal
    energy += torch.stack([signal.square().sum(), noise.square().sum()]).cpu()


def _by_layer(decibels: dict[str, float]) -> dict[str, dict[str, float]]:
    layers: dict[str, dict[str, float]] = {}
    for name, value in decibels.items():
        layer, _, point = name.rpartition(".")
        kinds = layers.setdefault(layer or name, {})
        kind = "weights" if point == WEIGHT else "activations"
        kinds[kind] = min(value, kinds.get(kind, inf))
    return layers


def _decibels(signal: Tensor, noise: Tensor) -> float:
    return 10 * log10(signal / noise)

"""How sensitive each layer is: what the logits lose when it alone is quantised."""

import csv
import io
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.files import write_text, write_whole
from psaq.images.batches import CalibrationImages, batches_for
from psaq.models.answers import Answering
from psaq.models.wrappers import unwrapped
from psaq.progress import progress_bar
from psaq.quantization.model.points import WEIGHT, Point, layer_of, live_points, role
from psaq.quantization.pipeline import calibrate_at_once, prepared
from psaq.quantization.quantizers.weights import bits_at
from psaq.quantization.recipes import Recipe
from psaq.tasks.classification import Logits, logit_sqnr, most_likely
from psaq_plots import Style, save_figure, sensitivity_figure

Switches = Mapping[str, nn.Module]
"""Point → what is to stand there."""


@dataclass(frozen=True)
class LayerSensitivity:
    """What quantising one layer costs, all others in full precision.

    Attributes:
        weights: bits per weight, None where the layer has no weight to quantise.
        activations: bits per activation, None where none is quantised.
        logit_sqnr: 10·log10(Σ ref² / Σ (ref − q)²) over the logits, in dB; inf where nothing changes.
        agreement: images whose predicted class stays, in percent; None of a model without classes.
    """

    layer: str
    weights: int | None
    activations: int | None
    logit_sqnr: float
    agreement: float | None


@dataclass(frozen=True)
class Sensitivity:
    """The layers in the order of the model's modules."""

    layers: tuple[LayerSensitivity, ...]

    def worst_first(self) -> list[LayerSensitivity]:
        """The layers by falling damage."""
        return sorted(self.layers, key=lambda layer: layer.logit_sqnr)

    def write_csv(self, path: Path | str) -> None:
        """One row per layer. Raises PsaqError where ``path`` cannot be written."""
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow([field.name for field in fields(LayerSensitivity)])
        writer.writerows(astuple(layer) for layer in self.layers)
        write_text(Path(path), table.getvalue())

    def plot(self, path: Path | str | None = None, style: str | Style = "paper") -> Figure:
        """A bar per layer; also written to ``path`` (png, svg or pdf) where one is given.

        Raises:
            PsaqError: an unknown style or ending, or ``path`` cannot be written.
        """
        sqnr = np.array([layer.logit_sqnr for layer in self.layers])
        agreement = np.array([layer.agreement for layer in self.layers]) if self._has_classes else None
        try:
            figure = sensitivity_figure(sqnr, agreement, [layer.layer for layer in self.layers], style)
            if path is not None:
                write_whole(Path(path), lambda temporary: save_figure(figure, temporary))
        except ValueError as error:
            raise PsaqError(str(error)) from error
        return figure

    def __str__(self) -> str:
        width = max(len(layer.layer) for layer in self.layers)
        rows = [f"{'layer':<{width}}  bits  logit SQNR{'  agreement' if self._has_classes else ''}"]
        for layer in self.layers:
            agreement = "" if layer.agreement is None else f"  {layer.agreement:>7.1f} %"
            rows.append(f"{layer.layer:<{width}}  {_bits(layer):<4}  {layer.logit_sqnr:>7.1f} dB{agreement}")
        return "\n".join(rows)

    @property
    def _has_classes(self) -> bool:
        return all(layer.agreement is not None for layer in self.layers)


def sensitivity(
    model: nn.Module,
    images: CalibrationImages,
    recipe: Recipe | None = None,
    *,
    batch_size: int = 32,
    progress: bool = False,
) -> Sensitivity:
    """Quantise one layer after the other, each alone, and compare the logits with the model's own.

    Args:
        model: as for `psaq.quantize`; left untouched.
        images: both calibrated and measured on.
        recipe: bits, scope and quantisers; W4A8 of `Recipe.accurate` by default. Weights are rounded to nearest,
            nothing is compensated or reconstructed: the same simple rule for every layer.
        progress: show a bar on standard error; by default nothing.

    Raises:
        PsaqError: as `psaq.quantize`.
    """
    model, recipe = unwrapped(model), recipe or Recipe.accurate(4, 8)
    batches = list(batches_for(model, images, batch_size))
    qmodel, calibrated_on = prepared(model, batches, recipe, batch_size)
    calibrate_at_once(qmodel, calibrated_on, recipe, progress)
    layers = switched_off(qmodel)
    costs = costs_alone(qmodel, batches, layers, progress)
    return Sensitivity(tuple(_row(qmodel, layer, layers[layer], recipe, *cost) for layer, cost in costs.items()))


def switched_off(qmodel: nn.Module) -> dict[str, Switches]:
    """Turn every point off; returns what stood there, layer by layer."""
    layers: dict[str, dict[str, nn.Module]] = {}
    for name, quantizer in live_points(qmodel).items():
        layers.setdefault(layer_of(name) or name, {})[name] = quantizer
        qmodel.set_submodule(name, Point())
    return dict(layers)


def costs_alone(
    qmodel: nn.Module, batches: list[Tensor], switches: Mapping[str, Switches], progress: bool
) -> dict[str, tuple[float, float | None]]:
    """Logit SQNR in dB and agreement in percent (None without classes) where only the points of one entry are on, entry
    by entry."""
    answers = Answering(qmodel)
    reference = _logits(answers, batches)
    costs = {}
    for entry, points in progress_bar(switches.items(), description="Sensitivity", unit="layer", enabled=progress):
        for name, quantizer in points.items():
            qmodel.set_submodule(name, quantizer)
        logits = _logits(answers, batches)
        for name in points:
            qmodel.set_submodule(name, Point())
        agreement = _agreement(logits, reference) if answers.has_classes else None
        costs[entry] = logit_sqnr(logits, reference), agreement
    return costs


@torch.no_grad()
def _logits(answers: Answering, batches: list[Tensor]) -> Logits:
    return torch.cat([answers(batch).float().cpu() for batch in batches])


def _agreement(logits: Logits, reference: Logits) -> float:
    return 100 * (most_likely(logits, 1) == most_likely(reference, 1)).double().mean().item()


def _row(
    qmodel: nn.Module, layer: str, points: Switches, recipe: Recipe, sqnr: float, agreement: float | None
) -> LayerSensitivity:
    weights, activations = bits_at(qmodel, next(iter(points)), recipe)
    of_weights = sum(role(point) == WEIGHT for point in points)
    return LayerSensitivity(
        layer,
        weights if of_weights else None,
        activations if len(points) > of_weights else None,
        sqnr,
        agreement,
    )


def _bits(layer: LayerSensitivity) -> str:
    """ "W4A8", "W4" or "A8"."""
    weights = "" if layer.weights is None else f"W{layer.weights}"
    return weights if layer.activations is None else f"{weights}A{layer.activations}"

"""The curves of Fig. 3: a container that draws itself and writes its numbers."""

import csv
import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from numpy import ndarray

from psaq.density.modes import without_self_similarity
from psaq.density.numbers import LayerNumbers, describe, layer_numbers
from psaq.errors import PsaqError
from psaq.files import write_json, write_text, write_whole
from psaq_plots import Style, check_format, density_figure, save_figure

QUANTILES = (0.1, 0.9)
REAL = "real"


@dataclass(frozen=True)
class DensityCurves:
    """The density of patch similarity Γ of each source of images, in each layer.

    Attributes:
        grid: similarities, reaching slightly beyond [-1, 1].
        layers: the layers' names.
        density: source → densities at the grid; all N² similarities of an image count.
        entropy: source → differential entropy of these densities, in nats.
        patches: per layer, how many patches are compared with each other (for Swin, those of a window).
        windows: per layer, how many windows of patches an image has (heads kept separate count as windows, too).
        bandwidth: the Gaussian kernel's standard deviation.
    """

    grid: Float[ndarray, "grid"]
    layers: tuple[str, ...]
    density: dict[str, Float[ndarray, "layers images grid"]]
    entropy: dict[str, Float[ndarray, "layers images"]]
    patches: tuple[int, ...]
    windows: tuple[int, ...]
    bandwidth: float

    def plot(
        self,
        path: Path | str | None = None,
        style: str | Style = "paper",
        quantiles: tuple[float, float] = QUANTILES,
    ) -> Figure:
        """Fig. 3, one panel per layer; also written to ``path`` (png, svg or pdf) where one is given.

        Raises:
            PsaqError: an unknown style or ending, or ``path`` cannot be written; nothing is left half-written.
        """
        try:
            if path is not None:
                check_format(Path(path))
            figure = density_figure(self.grid, self.density, self.layers, quantiles, style=style)
        except ValueError as error:
            raise PsaqError(str(error)) from error
        if path is not None:
            write_whole(Path(path), lambda temporary: save_figure(figure, temporary))
        return figure

    def numbers(self) -> dict[str, list[LayerNumbers]]:
        """Source → its numbers, layer by layer."""
        return {
            source: [self._numbers(source, position) for position in range(len(self.layers))] for source in self.density
        }

    def verdicts(self) -> dict[str, str]:
        """Source → what its curves look like, in one line."""
        return {source: describe(layers) for source, layers in self.numbers().items()}

    def summary(self) -> dict[str, Any]:
        """Every number and verdict, as JSON has it."""
        sources = {
            source: {
                "images": self.density[source].shape[1],
                "entropy": sum(layer.entropy for layer in layers),
                "verdict": describe(layers),
                "layers": [asdict(layer) for layer in layers],
            }
            for source, layers in self.numbers().items()
        }
        return {"bandwidth": self.bandwidth, "grid_points": len(self.grid), "sources": sources}

    def write_json(self, path: Path | str) -> None:
        """Write `summary`. Raises PsaqError where ``path`` cannot be written."""
        write_json(Path(path), self.summary())

    def write_csv(self, path: Path | str, quantiles: tuple[float, float] = QUANTILES) -> None:
        """Write the curves as drawn: each source's mean and quantile band at every layer and similarity.

        Raises:
            PsaqError: ``path`` cannot be written.
        """
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows(self._rows(quantiles))
        write_text(Path(path), table.getvalue())

    def _numbers(self, source: str, layer: int) -> LayerNumbers:
        real = self._pairs(REAL, layer) if REAL in self.density and source != REAL else None
        return layer_numbers(
            self.layers[layer],
            self.grid,
            self._pairs(source, layer),
            self.entropy[source][layer],
            real,
            samples=self.windows[layer] * self.patches[layer] * (self.patches[layer] - 1) // 2,
            bandwidth=self.bandwidth,
        )

    def _pairs(self, source: str, layer: int) -> Float[ndarray, "images grid"]:
        return without_self_similarity(self.grid, self.density[source][layer], self.patches[layer], self.bandwidth)

    def _rows(self, quantiles: tuple[float, float]) -> Iterator[list[str]]:
        yield ["layer", "similarity", *(f"{s}_{part}" for s in self.density for part in ("mean", "low", "high"))]
        for position, layer in enumerate(self.layers):
            drawn = [_drawn(density[position], quantiles) for density in self.density.values()]
            for similarity, values in zip(self.grid, np.concatenate(drawn).T, strict=True):
                yield [layer, f"{similarity:.4f}", *(f"{value:.4g}" for value in values)]


def _drawn(density: Float[ndarray, "images grid"], quantiles: tuple[float, float]) -> Float[ndarray, "3 grid"]:
    return np.stack([density.mean(0), *np.quantile(density, quantiles, axis=0)])

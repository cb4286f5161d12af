"""One layer's density of one source in numbers, and a source in one line."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from psaq.density.modes import Mode, central_width, distance, find_modes, separation, smoothed


@dataclass(frozen=True)
class LayerNumbers:
    """What a layer makes of one source of images.

    Attributes:
        entropy: nats, averaged over the images, each patch with itself included: what synthesis raises.
        modes: of the images' mean density of pairs of different patches, smoothed by Silverman's rule.
        separation: between the two heaviest modes, None below two.
        width: of the interval of similarities that holds 90 % of the pairs.
        bimodal: the share of images that have two modes or more, each on its own.
        to_real: Wasserstein-1 distance to the real images' mean density, None where there are none.
    """

    layer: str
    entropy: float
    modes: tuple[Mode, ...]
    separation: float | None
    width: float
    bimodal: float
    to_real: float | None


def layer_numbers(
    layer: str,
    grid: Float[ndarray, "grid"],
    pairs: Float[ndarray, "images grid"],
    entropy: Float[ndarray, "images"],
    real: Float[ndarray, "real grid"] | None,
    samples: int,
    bandwidth: float,
) -> LayerNumbers:
    """The numbers of one layer, from the densities of its pairs of different patches, ``samples`` of each image."""
    mean = pairs.mean(0)
    modes = find_modes(grid, smoothed(grid, mean, samples * len(pairs), bandwidth))
    single = [smoothed(grid, image, samples, bandwidth) for image in pairs]
    return LayerNumbers(
        layer=layer,
        entropy=float(entropy.mean()),
        modes=modes,
        separation=separation(modes),
        width=central_width(grid, mean),
        bimodal=float(np.mean([len(find_modes(grid, image)) > 1 for image in single])),
        to_real=None if real is None else distance(grid, mean, real.mean(0)),
    )


def describe(layers: Sequence[LayerNumbers]) -> str:
    """A source's verdict: in how many layers it has one mode and in how many more, how wide, how far from real."""
    several = [numbers.separation for numbers in layers if numbers.separation is not None]
    distances = [numbers.to_real for numbers in layers if numbers.to_real is not None]
    bimodal = sum(numbers.bimodal for numbers in layers) / len(layers)
    parts = [
        f"two modes or more in {len(several)} of {len(layers)} layers" if several else "unimodal in every layer",
        f"{median(several):.2f} apart" if several else "",
        f"{bimodal:.0%} of single images bimodal",
        f"90% of pairs within {median(numbers.width for numbers in layers):.2f}",
        f"entropy {sum(numbers.entropy for numbers in layers):.2f}",
        f"{sum(distances) / len(distances):.3f} from real (Wasserstein-1)" if distances else "",
    ]
    return ", ".join(part for part in parts if part)

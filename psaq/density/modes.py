"""What one density says in numbers: its modes, how wide it is, how far it is from another."""

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks, peak_prominences
from scipy.stats import wasserstein_distance

SMALLEST_DIP = 0.15
"""A peak is a mode where the density falls by this share of the peak before it rises higher."""
SMALLEST_MASS = 0.05
"""…and where this share of all probability lies between its valleys."""

Grid = Float[ndarray, "grid"]


@dataclass(frozen=True)
class Mode:
    """A hill of a density: where its top is, how high, and the probability between its valleys."""

    position: float
    height: float
    mass: float


def find_modes(grid: Grid, density: Grid) -> tuple[Mode, ...]:
    """The modes of a density from left to right; both thresholds are relative, so they hold at any height.

    The density must fall to zero at both ends of the grid: a maximum at an end is not seen.
    """
    peaks, _ = find_peaks(density)
    prominences, _, _ = peak_prominences(density, peaks)
    peaks = peaks[prominences >= SMALLEST_DIP * density[peaks]]
    while len(peaks) > 1 and (masses := _masses(grid, density, peaks)).min() < SMALLEST_MASS:
        peaks = np.delete(peaks, masses.argmin())
    return tuple(
        Mode(float(grid[peak]), float(density[peak]), float(mass))
        for peak, mass in zip(peaks, _masses(grid, density, peaks), strict=True)
    )


def smoothed(grid: Grid, density: Grid, samples: int, bandwidth: float) -> Grid:
    """A density as a Gaussian kernel estimate by Silverman's rule would have it: no ripples of few samples.

    The rule's bandwidth is 0.9 min(σ, IQR / 1.34) n^(−1/5) (Silverman 1986, eq. 3.31). ``density`` is an estimate
    with ``bandwidth`` already, so that only what lacks is added; where nothing lacks, it is returned as it is.
    """
    probability = density / density.sum()
    centre = probability @ grid
    deviation = float(np.sqrt(probability @ (grid - centre) ** 2))
    wanted = 0.9 * min(deviation, central_width(grid, density, 0.5) / 1.34) * samples**-0.2
    if wanted <= bandwidth:
        return density
    lacking = np.sqrt(wanted**2 - bandwidth**2) / (grid[1] - grid[0])
    return gaussian_filter1d(density, lacking, mode="constant")


def separation(modes: tuple[Mode, ...]) -> float | None:
    """The distance between the two heaviest modes: inter- and intra-category similarity. None below two modes."""
    if len(modes) < 2:
        return None
    left, right = sorted(sorted(modes, key=lambda mode: mode.mass)[-2:], key=lambda mode: mode.position)
    return right.position - left.position


def central_width(grid: Grid, density: Grid, share: float = 0.9) -> float:
    """The width of the interval that leaves equal tails and holds ``share`` of the probability."""
    cumulative = np.cumsum(density) / density.sum()
    low, high = np.interp([(1 - share) / 2, (1 + share) / 2], cumulative, grid)
    return float(high - low)


def distance(grid: Grid, first: Grid, second: Grid) -> float:
    """Wasserstein-1: the mean way that probability must travel to turn one density into the other."""
    return float(wasserstein_distance(grid, grid, first, second))


def without_self_similarity(grid: Grid, density: Grid, patches: int, bandwidth: float) -> Grid:
    """The density of the pairs of different patches.

    Of the N² similarities of N patches, the N of a patch with itself are 1 whatever the image: a spike that is
    no mode of the image. Their share 1/N of the density is known exactly and taken out.
    """
    kernel = np.exp(-0.5 * ((grid - 1) / bandwidth) ** 2) / (bandwidth * np.sqrt(2 * np.pi))
    return np.clip((patches * density - kernel) / (patches - 1), 0, None)


def _masses(grid: Grid, density: Grid, peaks: ndarray) -> Float[ndarray, "modes"]:
    """The probability around each peak, cut at the lowest points between neighbours."""
    if len(peaks) == 0:
        return np.zeros(0)
    valleys = [left + int(density[left:right].argmin()) for left, right in itertools.pairwise(peaks)]
    cuts = [0, *valleys, len(grid)]
    spread = density * np.gradient(grid)
    return np.array([spread[a:b].sum() for a, b in itertools.pairwise(cuts)]) / spread.sum()

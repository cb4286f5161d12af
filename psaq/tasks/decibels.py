"""Signal to noise."""

import math


def decibels(signal: float, noise: float) -> float:
    """10·log10(signal / noise) of two energies, in dB; ∞ without noise, −∞ without a signal."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf

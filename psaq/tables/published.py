"""What the paper reports: Table 1 of Li et al. (2022), ImageNet top-1 in percent."""

from psaq.tables.comparison import GAUSSIAN, PSAQ, STANDARD

FULL_PRECISION = {
    "vit_small": 81.39,
    "vit_base": 84.53,
    "deit_tiny": 72.21,
    "deit_small": 79.85,
    "deit_base": 81.85,
    "swin_tiny": 81.35,
    "swin_small": 83.20,
}
_METHODS = (STANDARD, GAUSSIAN, PSAQ)
_TOP1 = {
    ("vit_small", "W4A8"): (19.91, 15.60, 20.84),
    ("vit_small", "W8A8"): (30.28, 25.22, 31.45),
    ("vit_base", "W4A8"): (24.76, 19.45, 25.34),
    ("vit_base", "W8A8"): (36.65, 31.63, 37.36),
    ("deit_tiny", "W4A8"): (65.20, 7.80, 65.57),
    ("deit_tiny", "W8A8"): (71.27, 10.55, 71.56),
    ("deit_small", "W4A8"): (72.10, 13.30, 73.23),
    ("deit_small", "W8A8"): (76.00, 18.16, 76.92),
    ("deit_base", "W4A8"): (76.25, 11.09, 77.05),
    ("deit_base", "W8A8"): (78.61, 14.72, 79.10),
    ("swin_tiny", "W4A8"): (70.16, 0.52, 71.79),
    ("swin_tiny", "W8A8"): (74.22, 0.62, 75.35),
    ("swin_small", "W4A8"): (73.33, 5.43, 75.14),
    ("swin_small", "W8A8"): (75.19, 5.66, 76.64),
}


def published_top1(model: str, precision: str, method: str) -> float | None:
    """Table 1's figure for a cell; None where the paper has none."""
    figures = _TOP1.get((model, precision))
    return figures[_METHODS.index(method)] if figures else None

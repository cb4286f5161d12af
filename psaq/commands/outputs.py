"""A command's picture: how it looks and where it goes, checked before the work, written whole after it."""

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from psaq.errors import PsaqError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from psaq_plots import Style


@dataclass(frozen=True)
class FigureOptions:
    """How the picture looks and where it goes."""

    out: Path
    """The picture: .png, .svg or .pdf."""
    style: Literal["paper", "dark", "talk"] = "paper"
    """For print, for dark pages, for slides."""
    dpi: int | None = None
    """Pixels per inch of a .png; by default 300, for slides 150."""

    def look(self) -> "Style":
        """The style, at the resolution asked for."""
        from psaq_plots import find_style

        style = find_style(self.style)
        return style if self.dpi is None else replace(style, dpi=self.dpi)

    def check(self, *others: Path | None) -> None:
        """Find out before the work that the picture, or another result, could not be written after it.

        Raises:
            PsaqError: an ending that is no picture's, a path that cannot be written, or a resolution that cannot be.
        """
        from psaq.files import make_folder
        from psaq_plots import check_format

        try:
            check_format(self.out)
        except ValueError as error:
            raise PsaqError(str(error)) from error
        if self.dpi is not None and not 30 <= self.dpi <= 1200:
            raise PsaqError(f"--dpi {self.dpi}: must be within [30, 1200]")
        for path in (self.out, *others):
            if path is not None and (path.is_dir() or not os.access(make_folder(path.parent), os.W_OK)):
                raise PsaqError(f"{path}: cannot be written; name a file in a folder of yours")

    def write(self, figure: "Figure") -> None:
        """Write the picture, whole or not at all, and print its path. Raises PsaqError where it cannot be."""
        from psaq.files import write_whole
        from psaq_plots import save_figure

        write_whole(self.out, partial(save_figure, figure))
        print(self.out)

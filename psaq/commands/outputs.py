"""Where a command's picture goes: found out before the work, written whole after it."""

import os
from pathlib import Path

from matplotlib.figure import Figure

from psaq.errors import PsaqError
from psaq.files import make_folder, write_whole
from psaq_plots import check_format, save_figure


def check_outputs(picture: Path, *others: Path | None) -> None:
    """Find out before the work that a result could not be written after it. Raises PsaqError."""
    try:
        check_format(picture)
    except ValueError as error:
        raise PsaqError(str(error)) from error
    for path in (picture, *others):
        if path is not None and (path.is_dir() or not os.access(make_folder(path.parent), os.W_OK)):
            raise PsaqError(f"{path}: cannot be written; name a file in a folder of yours")


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure as png, svg or pdf, whole or not at all. Raises PsaqError."""
    write_whole(path, lambda temporary: save_figure(figure, temporary))

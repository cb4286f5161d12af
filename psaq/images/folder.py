"""The picture files of a folder: which there are, and which are passed over."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from psaq.errors import PsaqError

IMAGE_SUFFIXES = {".jpeg", ".jpg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
_OTHERS = {".gif", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".jfif", ".tga", ".ppm", ".pgm", ".psd", ".svg", ".dng"}
"""Endings of pictures that are not read."""
_SIDE_FILES = "._"
"""How the names of files begin that macOS puts beside others: they hold no picture."""


@dataclass(frozen=True)
class FoundPictures:
    """Files in sorted path order, and how many pictures of other endings lie beside them."""

    files: list[Path]
    passed_over: Counter[str]


def find_pictures(folder: Path) -> FoundPictures:
    """The pictures in ``folder``, searched to the bottom, linked folders included. Raises PsaqError for a link that
    leads nowhere."""
    files, passed_over = [], Counter[str]()
    for path in sorted(_files_under(folder)):
        suffix = path.suffix.lower()
        if path.name.startswith(_SIDE_FILES) or suffix not in IMAGE_SUFFIXES | _OTHERS:
            continue
        if path.is_symlink() and not path.exists():
            raise PsaqError(f"{path}: is a link to {path.readlink()}, which is not there; mend or remove it")
        if not path.is_file():
            continue
        if suffix in IMAGE_SUFFIXES:
            files.append(path)
        else:
            passed_over[suffix] += 1
    return FoundPictures(files, passed_over)


def _files_under(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Whatever is no folder. A link back to a folder that is ``above`` would never end and is left out, as is a folder
    that may not be read."""
    itself = folder.resolve()
    if itself in above or not os.access(folder, os.R_OK | os.X_OK):
        return
    for entry in os.scandir(folder):
        path = Path(entry)
        if path.is_dir() if entry.is_symlink() else entry.is_dir():
            yield from _files_under(path, above | {itself})
        else:
            yield path


def counted(passed_over: Counter[str]) -> str:
    """How many were passed over, by their ending: "3 passed over (.gif 2, .heic 1)"."""
    endings = ", ".join(f"{suffix} {count}" for suffix, count in sorted(passed_over.items()))
    return f"{passed_over.total()} passed over ({endings})"

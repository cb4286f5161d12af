"""What a long step shows on standard error: progress bars of one look, and a word between them."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm

from psaq.distributed import is_first


def progress_bar(
    iterable: Iterable[Any] | None = None,
    *,
    description: str,
    total: int | None = None,
    unit: str = "it",
    initial: int = 0,
    enabled: bool = True,
) -> "tqdm[Any]":
    """A progress bar on standard error with rate and time left; silent when not ``enabled``.

    Of a launch's ranks only the first shows one.
    """
    options: dict[str, Any] = {"desc": description, "total": total, "unit": unit, "initial": initial}
    return tqdm(iterable, **options, dynamic_ncols=True, disable=not (enabled and is_first()), smoothing=0.1)


def note(text: str) -> None:
    """One line on standard error, once whatever the number of processes, and never across a bar."""
    if is_first():
        tqdm.write(f"psaq: {text}", file=sys.stderr)


def count_as_done(bar: "tqdm[Any]", units: int) -> None:
    """Move ``bar`` on by what an earlier process did: it counts towards the total, not towards the rate."""
    if not bar.disable:
        bar.initial += units
        bar.update(units)

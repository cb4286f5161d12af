"""One look for every progress bar."""

from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm


def progress_bar(
    iterable: Iterable[Any] | None = None,
    *,
    description: str,
    total: int | None = None,
    unit: str = "it",
    initial: int = 0,
    enabled: bool = True,
) -> "tqdm[Any]":
    """A progress bar on standard error with rate and time left; silent when not ``enabled``."""
    options: dict[str, Any] = {"desc": description, "total": total, "unit": unit, "initial": initial}
    return tqdm(iterable, **options, dynamic_ncols=True, disable=not enabled, smoothing=0.1)

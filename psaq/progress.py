"""What a long step shows on standard error: a bar in a terminal, lines in a log, and a word between them."""

import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from tqdm.asyncio import tqdm as terminal_bar
from tqdm.auto import tqdm

from psaq.distributed import is_first

_TENTHS, _LONGEST, _SHORTEST = 10, 30.0, 1.0  # seconds between two lines of a log
_COUNT = "{desc}: {n_fmt}, {elapsed} gone, {rate_fmt}{postfix}"
_LINE = "{desc}: {percentage:.0f} % ({n_fmt}/{total_fmt}), {elapsed} gone, {remaining} left, {rate_fmt}{postfix}"


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

    Where standard error is neither a terminal nor a notebook's, lines take the bar's place. Of a launch's ranks only
    the first shows anything.
    """
    kind = tqdm if sys.stderr.isatty() or tqdm is not terminal_bar else _Lines
    options: dict[str, Any] = {"desc": description, "total": total, "unit": unit, "initial": initial}
    return kind(iterable, **options, dynamic_ncols=True, disable=not (enabled and is_first()), smoothing=0.1)


def note(text: str) -> None:
    """One line on standard error, once whatever the number of processes, and never across a bar."""
    if is_first():
        tqdm.write(f"psaq: {text}", file=sys.stderr)


def count_as_done(bar: "tqdm[Any]", units: int) -> None:
    """Move ``bar`` on by what an earlier process did: it counts towards the total, not towards the rate."""
    if not bar.disable:
        bar.initial += units
        bar.update(units)


class _Lines(terminal_bar):
    """For a log, in which nothing can be drawn over: a line as each tenth is done, or 30 seconds after the last."""

    def __init__(self, *args: Any, **options: Any):
        self._said = options["initial"]
        self._said_at = time.monotonic()
        # With ``gui`` nothing is written but what `display` writes.
        super().__init__(*args, **{**options, "gui": True, "mininterval": _SHORTEST})

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """The line, where it is time for one."""
        tenth, said = (_TENTHS * units // self.total if self.total else 0 for units in (self.n, self._said))
        if tenth > said or time.monotonic() - self._said_at >= _LONGEST:
            self._say(self.format_dict)

    def clear(self, nolock: bool = False) -> None:
        """A line stays."""

    def close(self) -> None:
        """The last line, with the rate of the whole."""
        if not self.disable and self.n > self._said:
            self._say({**self.format_dict, "rate": None})
        super().close()

    def _say(self, state: Mapping[str, Any]) -> None:
        self._said, self._said_at = self.n, time.monotonic()
        look = {"bar_format": _LINE if self.total else _COUNT, "ncols": None}
        print(self.format_meter(**{**state, **look}), file=self.fp, flush=True)

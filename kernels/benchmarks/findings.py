"""Measurements that survive their process: each is written as it is made, and none is made twice.

    python findings.py MODULE:FUNCTION FILE OPTIONS

``FUNCTION(**OPTIONS)`` gives *cases*: what a measurement is called, as a dictionary, and a function that makes it and
returns what it found, as another. Both go as one line of JSON into FILE. Started again after a crash, cases that are
there are left out, and so is the one that was under way: it is written down as refused.
"""

import faulthandler
import importlib
import json
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from settings import launch_with_defaults  # type: ignore[import-not-found]

CASE_SECONDS = 100  # after which a measurement counts as hanging, and its process ends itself

Row = dict[str, Any]
Case = tuple[Row, Callable[[], Row]]

REFUSED = "refused"  # the column that says why a measurement came to nothing
_BEGUN = "begun"


def read(path: Path) -> list[Row]:
    """What has been found; of a case that a crash cut short, that it was."""
    died = {REFUSED: "its process died"}
    return [entry["case"] | (died if entry.get(_BEGUN) else entry["found"]) for entry in _entries(path).values()]


def forget_unfinished(path: Path) -> None:
    """Leave out a case that was cut short by no fault of its own, so that the next start makes it."""
    _keep(path, lambda entry: not entry.get(_BEGUN))


def forget_refused(path: Path) -> None:
    """Leave out all that came to nothing, so that the next start tries it again."""
    _keep(path, lambda entry: REFUSED not in entry.get("found", (REFUSED,)))


def _keep(path: Path, wanted: Callable[[Row], bool]) -> None:
    kept = [entry for entry in _entries(path).values() if wanted(entry)]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")


def write(path: Path, case: Row, found: Row | None) -> None:
    """Add one case, or, without what was found, that it has begun."""
    line = json.dumps({"case": case, _BEGUN: True} if found is None else {"case": case, "found": found})
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def _entries(path: Path) -> dict[str, Row]:
    """The last entry on each case; a line that a crash cut off is none."""
    entries: dict[str, Row] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        entries[_name(entry["case"])] = entry
    return entries


def collect(cases: Iterable[Case], path: Path) -> None:
    """Make every measurement that is not in the file yet. Where the GPU no longer answers, the process ends."""
    known = _entries(path).keys()
    for case, measure in cases:
        if _name(case) not in known:
            write(path, case, None)
            write(path, case, _measured(case, measure))
            if torch.cuda.is_available():
                torch.cuda.synchronize()


def _name(case: Row) -> str:
    return json.dumps(case, sort_keys=True)


def _measured(case: Row, measure: Callable[[], Row]) -> Row:
    """What was found, or why nothing."""
    print(_name(case), flush=True)
    faulthandler.dump_traceback_later(CASE_SECONDS, exit=True)
    try:
        found = measure()
    except Exception as error:
        traceback.print_exc()
        found = {REFUSED: f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    finally:
        faulthandler.cancel_dump_traceback_later()
    print("   ", found, flush=True)
    return found


def main() -> None:
    where, path, text = sys.argv[1:]
    module, function = where.split(":")
    options = json.loads(text)
    if options.get("configuration") == "default":
        launch_with_defaults()
    collect(getattr(importlib.import_module(module), function)(**options), Path(path))


if __name__ == "__main__":
    main()

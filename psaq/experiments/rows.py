"""Tables that a run adds row by row to: dataclasses of numbers and text in a CSV file."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from psaq.files import write_csv

Row = TypeVar("Row")


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """What is in the table so far; nothing where there is none. ``kind`` is a dataclass."""
    if not path.exists():
        return []
    columns: dict[str, Any] = {column.name: column.type for column in fields(kind)}  # type: ignore[arg-type]
    with path.open(newline="", encoding="utf-8") as file:
        return [kind(**{name: of(line[name]) for name, of in columns.items()}) for line in csv.DictReader(file)]


def write_rows(path: Path, rows: Sequence[Any]) -> None:
    """The table, whole or not at all; floats to four decimals."""
    write_csv(path, [column.name for column in fields(rows[0])], map(asdict, rows))

"""Tables that a run adds row by row to: dataclasses of numbers and text in a CSV file."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from psaq.errors import PsaqError
from psaq.files import write_csv

Row = TypeVar("Row")


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """What is in the table so far; nothing where there is none. ``kind`` is a dataclass.

    Raises:
        PsaqError: the table has other columns, or a line that is no row of them.
    """
    if not path.exists():
        return []
    columns: dict[str, Any] = {column.name: column.type for column in fields(kind)}  # type: ignore[arg-type]
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *lines = csv.reader(file, strict=True)
        if header != [*columns]:
            raise ValueError(f"its columns are {', '.join(header)}, not {', '.join(columns)}")
        pairs = [zip(columns.items(), line, strict=True) for line in lines]
        return [kind(**{name: of(value) for (name, of), value in pair}) for pair in pairs]
    except (OSError, ValueError, csv.Error) as error:
        raise PsaqError(f"{path}: is damaged ({error}); remove it, or run again") from error


def write_rows(path: Path, rows: Sequence[Any]) -> None:
    """The table, whole or not at all; floats to four decimals."""
    write_csv(path, [column.name for column in fields(rows[0])], map(asdict, rows))

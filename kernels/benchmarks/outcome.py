"""What comes back: a summary, one table an operation, the tuned tables, a picture, and the logs in one archive."""

import csv
import json
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import findings  # type: ignore[import-not-found]
from picture import draw  # type: ignore[import-not-found]
from staging import Ended  # type: ignore[import-not-found]

TABLES = {
    "similarity_density": ("density", "density-tuned"),
    "quant_linear": ("linear", "linear-tuned"),
    "inference": ("inference", "inference-tuned"),
    "synthesis": ("synthesis", "synthesis-tuned"),
}
"""CSV file → the stages whose findings it holds."""

SUMMARY, ARCHIVE, PICTURE = "summary.json", "logs.tar.gz", "speed.png"
Row = dict[str, Any]


class Work:
    """The folder in which stages write; an archive of it comes back, from which a later call goes on."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.logs, self.found, self.cache = (folder / name for name in ("logs", "found", "cache"))
        for each in (self.logs, self.found, self.cache):
            each.mkdir(parents=True, exist_ok=True)

    def rows(self, stage: str) -> list[Row]:
        return findings.read(self.path(stage))

    def path(self, stage: str) -> Path:
        return self.found / f"{stage}.jsonl"

    @property
    def tuned(self) -> list[Path]:
        return sorted((self.cache / "tuned").glob("*.json"))

    def pack(self, archive: Path) -> None:
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(self.folder, arcname=".", filter=_without_locks)

    def unpack(self, archive: Path) -> None:
        with tarfile.open(archive) as tar:
            tar.extractall(self.folder, filter="data")


def _without_locks(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if member.name.endswith(".lock") else member


def write(out: Path, work: Work, ended: Sequence[Ended]) -> None:
    """Everything worth keeping, so far."""
    machine = _machine(work)
    for table, stages in TABLES.items():
        rows = [row for stage in stages for row in work.rows(stage) if findings.REFUSED not in row]
        _write_csv(out / f"{table}.csv", [row for row in rows if "kernels" not in row], machine)
    for path in work.tuned:
        (out / "tuned").mkdir(exist_ok=True)
        shutil.copy(path, out / "tuned" / path.name)
    (out / SUMMARY).write_text(json.dumps(_summary(work, ended, machine), indent=1) + "\n", encoding="utf-8")
    work.pack(out / ARCHIVE)


def picture(out: Path, work: Work) -> None:
    """Of the tables that were written."""
    draw(out / PICTURE, {table: _rows_of(out / f"{table}.csv") for table in TABLES}, str(_machine(work).get("device")))


def _machine(work: Work) -> Row:
    return next((row for row in work.rows("check") if row["what"] == "machine"), {})


def _summary(work: Work, ended: Sequence[Ended], machine: Row) -> Row:
    checks = [row for row in work.rows("check") if row["what"] not in ("machine", "compiling")]
    tests = work.rows("tests")
    stages = [stage.stem for stage in sorted(work.found.glob("*.jsonl"))]
    refused = [{"stage": stage} | row for stage in stages for row in work.rows(stage) if findings.REFUSED in row]
    return {
        "machine": machine,
        "stages": [asdict(stage) for stage in ended],
        "wrong": [row for row in checks if not row.get("right")],
        "tests": {kind: sum(row.get("outcome") == kind for row in tests) for kind in ("passed", "failed", "skipped")},
        "refused": refused,
        "tuned": {path.name: len(json.loads(path.read_text(encoding="utf-8"))["entries"]) for path in work.tuned},
        "where": work.rows("where") + work.rows("profile"),
        "checks": checks,
    }


def _write_csv(path: Path, rows: Sequence[Row], machine: Row) -> None:
    if not rows:
        return
    common = {name: machine.get(name, "") for name in ("device", "torch", "triton")}
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*columns, *common], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **common} for row in rows)


def _rows_of(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def ended_before(out: Path) -> list[Ended]:
    """How the stages of an earlier call ended."""
    content = json.loads((out / SUMMARY).read_text(encoding="utf-8"))
    return [Ended(**stage) for stage in content["stages"]]

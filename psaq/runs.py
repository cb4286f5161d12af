"""A run's folder: the configuration, seed, versions, device, timings and results that let it be repeated."""

import hashlib
import json
import math
import platform
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from psaq.distributed import is_first
from psaq.errors import PsaqError
from psaq.files import make_folder, read_record, write_record
from psaq.locks import held
from psaq.settings import as_json, difference

RUN_FILE = "run.json"


class RunFolder:
    """One run of one command, written to ``run.json`` as it starts and again as it ends, by a launch's first rank."""

    def __init__(
        self,
        folder: Path | str,
        command: str,
        config: Any,
        seed: int | None = None,
        besides: Collection[str] = (),
        device: torch.device | str | None = None,
    ):
        """
        Args:
            besides: options that may be others, by dotted name, when the run is started again. Until its new end the
                record keeps those that its results are of.
            device: where it computes; by default the first GPU, the processor where there is none.

        Raises:
            PsaqError: the folder holds another command's or another configuration's run, another process works in
                it, or it cannot be written.
        """
        self.path = make_folder(Path(folder))
        self._lock = held(self.path, f"psaq {command}") if is_first() else None
        self._started, self._config = time.perf_counter(), as_json(config)
        self._here = {"versions": versions(), "device": device_name(device)}
        self.record: dict[str, Any] = {
            "command": command,
            "config": self._config,
            "seed": seed,
            **self._here,
            "timings": {},
            "results": {},
            "files": {},
        }
        self._continue_previous({"command": command, "config": config, "seed": seed}, besides)
        self._timings: dict[str, float] = dict(self.record["timings"])
        self._total_before = self._timings.pop("total", 0.0)
        self._write()

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add a step's wall-clock seconds to those of earlier starts; kept even where the run is stopped in it."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._timings[step] = self._timings.get(step, 0.0) + time.perf_counter() - started
            if not self.record["results"]:
                self._keep_timings()
                self._write()

    def finish(self, results: dict[str, Any]) -> Path:
        """Record the results, the total time and what the tables hold. Returns the path of ``run.json``.

        Where the record has the same results already, it goes on saying by which versions, where and in which time
        they were made.
        """
        made = json.loads(json.dumps(as_json(results)))
        if self.record["results"] != made:
            self.record |= {**self._here, "results": made}
            self._keep_timings()
        self.record["config"] = self._config
        self.record["files"] = {file.name: _digest(file) for file in sorted(self.path.glob("*.csv"))}
        path = self._write()
        if self._lock is not None:
            self._lock.release()
        return path

    def _continue_previous(self, asked: Mapping[str, Any], besides: Collection[str]) -> None:
        """Keep what an earlier start of the run that is asked for has recorded; refuse any other run."""
        if not (self.path / RUN_FILE).exists():
            return
        previous = read_run(self.path)
        for part, value in asked.items():
            if other := difference(previous.get(part), value, besides):
                raise PsaqError(
                    f"{self.path}: holds a run with another {part} ({other}); name another folder or remove this one"
                )
        kept = ["timings", "results", "files", *(["config"] if besides else [])]
        kept += ["versions", "device"] if previous["results"] else []
        self.record |= {part: previous[part] for part in kept}

    def _keep_timings(self) -> None:
        total = self._total_before + time.perf_counter() - self._started
        self.record["timings"] = {step: round(taken, 3) for step, taken in {**self._timings, "total": total}.items()}

    def _write(self) -> Path:
        path = self.path / RUN_FILE
        if is_first():
            write_record(path, self.record)
        return path


def read_run(folder: Path) -> dict[str, Any]:
    """The record of the run in ``folder``.

    Raises:
        PsaqError: there is none, it is not as it was written, or it is no run's record.
    """
    file = folder / RUN_FILE
    if not file.exists():
        raise PsaqError(f"{folder}: holds no {RUN_FILE}; name the folder of a run")
    record = read_record(file)
    record.setdefault("files", {})  # which records from before digests do not name
    wrong = [part for part in (*_PARTS, *record) if part not in _PARTS or not _PARTS[part](record.get(part, ...))]
    if wrong:
        raise PsaqError(f"{file}: is no run's record ({wrong[0]} is unknown, missing or wrong); remove it, run again")
    return record


def check_files(folder: Path, record: dict[str, Any]) -> None:
    """Raises PsaqError, naming it, where a table in ``folder`` is not as the run's record says that it was written."""
    for name, digest in record["files"].items():
        if (folder / name).exists() and _digest(folder / name) != digest:
            raise PsaqError(f"{folder / name}: is not as the run wrote it (SHA-256); give the run's command again")


def versions() -> dict[str, str]:
    """The versions that a run's numbers depend on."""
    packages = ("psaq", "torch", "torchvision", "timm", "triton", "numpy")
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def device_name(device: torch.device | str | None = None) -> str:
    """A GPU's product name, or the processor's."""
    if torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _is_names_and(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


_PARTS: dict[str, Callable[[Any], bool]] = {
    "command": _is_text,
    "config": lambda value: isinstance(value, dict),
    "seed": lambda value: value is None or type(value) is int,
    "versions": _is_names_and(_is_text),
    "device": _is_text,
    "timings": _is_names_and(_is_seconds),
    "results": lambda value: isinstance(value, dict),
    "files": _is_names_and(_is_text),
}
"""What a record holds, and what each part of it must be."""


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()

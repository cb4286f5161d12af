"""A run's folder: the configuration, seed, versions, device, timings and results that let it be repeated."""

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from psaq.distributed import is_first
from psaq.errors import PsaqError
from psaq.files import make_folder, read_json, write_json

RUN_FILE = "run.json"


class RunFolder:
    """One run of one command, written to ``run.json`` as it starts and again as it ends, by a launch's first rank."""

    def __init__(self, folder: Path | str, command: str, config: Any, seed: int | None = None):
        """
        Raises:
            PsaqError: the folder holds another command's or another configuration's run, or cannot be written.
        """
        self.path = make_folder(Path(folder))
        self._started = time.perf_counter()
        self.record: dict[str, Any] = {
            "command": command,
            "config": as_json(config),
            "seed": seed,
            "versions": versions(),
            "device": device_name(),
            "timings": {},
            "results": {},
        }
        self._continue_previous()
        self._write()

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add a step's wall-clock seconds to the record's timings."""
        started = time.perf_counter()
        yield
        self.record["timings"][step] = round(time.perf_counter() - started, 3)

    def finish(self, results: dict[str, Any]) -> Path:
        """Record the results and the total time. Returns the path of ``run.json``."""
        self.record["results"] = as_json(results)
        self.record["timings"]["total"] = round(time.perf_counter() - self._started, 3)
        return self._write()

    def _continue_previous(self) -> None:
        """Keep what an earlier start of the same run has recorded; refuse any other run."""
        file = self.path / RUN_FILE
        if not file.exists():
            return
        previous = read_json(file)
        for part in ("command", "config", "seed"):
            if previous.get(part) != self.record[part]:
                raise PsaqError(
                    f"{self.path}: holds a run with another {part} "
                    f"({difference(previous.get(part), self.record[part])}); name another folder or remove this one"
                )
        self.record |= {part: previous.get(part, {}) for part in ("timings", "results")}

    def _write(self) -> Path:
        path = self.path / RUN_FILE
        if is_first():
            write_json(path, self.record)
        return path


def versions() -> dict[str, str]:
    """The versions that a run's numbers depend on."""
    packages = ("psaq", "torch", "torchvision", "timm", "triton", "numpy")
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def device_name(device: torch.device | str | None = None) -> str:
    """A GPU's product name, or the processor's."""
    if torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def as_json(value: Any) -> Any:
    """Dataclasses, paths and tuples as what JSON has for them."""
    if is_dataclass(value) and not isinstance(value, type):
        return as_json(asdict(value))
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def difference(previous: Any, current: Any) -> str:
    """The first few settings in which two configurations differ, by dotted name."""
    before, after = dict(_settings(previous)), dict(_settings(current))
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return ", ".join(f"{name} {before.get(name)!r}, not {after.get(name)!r}".strip() for name in names[:3])


def _settings(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield name, value
        return
    for key, item in value.items():
        yield from _settings(item, f"{name}.{key}" if name else key)


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

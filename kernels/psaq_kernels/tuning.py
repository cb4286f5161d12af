"""Tuning tables: which configuration a kernel is launched with on the device at hand.

A table is one JSON file per device, in the user's cache directory ($PSAQ_CACHE_DIR/tuned, by default
~/.cache/psaq/tuned) or among those the package ships (``tuned/``). An entry is found by operation, source hash and
shape bucket: first for the same device and Triton version, then for the same capability, and where there is none the
operation's static heuristic decides. Looking up never measures anything; `psaq tune` writes the tables, each with a
digest of its entries.
"""

import fcntl
import hashlib
import json
import math
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from psaq_kernels.devices import DeviceLimits, device_limits
from psaq_kernels.tunable import Config, Problem, Tunable

FORMAT = 1
_MOST_WARPS, _MOST_STAGES, _LARGEST = 32, 16, 1 << 20
"""Beyond what any device takes."""
SHIPPED = Path(__file__).parent / "tuned"


@dataclass(frozen=True)
class Entry:
    """The best configuration found for one operation, bucket and device."""

    operation: str
    bucket: str
    source: str  # hash of the kernel's source
    triton: str  # version
    device: str
    capability: str
    config: Config
    default_us: float
    best_us: float

    @property
    def key(self) -> tuple[str, ...]:
        return (self.device, self.capability, self.triton, self.source, self.operation, self.bucket)


def configuration(tunable: Tunable, problem: Problem, device: torch.device) -> Config:
    """The configuration to launch ``tunable`` with: tuned for this device, for its capability, or the default."""
    return _configuration(tunable, tuple(problem.items()), device_limits(device))


@lru_cache(maxsize=4096)
def _configuration(tunable: Tunable, problem_items: tuple[tuple[str, int | str], ...], limits: DeviceLimits) -> Config:
    problem = dict(problem_items)
    default = tunable.default(problem, limits)
    for entry in _matching(tunable, tunable.bucket(problem), limits):
        if _kinds(entry.config) != _kinds(default):
            continue
        if entry.config.num_warps <= limits.max_warps:
            return entry.config
        warnings.warn(
            f"the tuned {entry.config} of {entry.operation} has more than the device's {limits.max_warps} warps "
            "and is ignored; run `psaq tune`",
            stacklevel=2,
        )
    return default


def _kinds(config: Config) -> dict[str, type]:
    """The constants of a configuration and what they are."""
    return {name: type(value) for name, value in config.constants.items()}


def _matching(tunable: Tunable, bucket: str, limits: DeviceLimits) -> list[Entry]:
    """Entries that apply, the closest first."""
    wanted = (tunable.name, bucket, tunable.source_hash, limits.capability)
    found = [
        entry for entry in _all_entries() if (entry.operation, entry.bucket, entry.source, entry.capability) == wanted
    ]
    here = (limits.name, triton_version())
    return sorted(found, key=lambda entry: (entry.device, entry.triton) != here)


@lru_cache(maxsize=1)
def triton_version() -> str:
    """The installed Triton's version, or "none"."""
    try:
        import triton
    except ImportError:
        return "none"
    return triton.__version__


# Files ------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where `psaq tune` writes: $PSAQ_CACHE_DIR/tuned, else $XDG_CACHE_HOME/psaq/tuned, else ~/.cache/psaq/tuned."""
    if "PSAQ_CACHE_DIR" in os.environ:
        return Path(os.environ["PSAQ_CACHE_DIR"]) / "tuned"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "psaq" / "tuned"


def table_path(folder: Path, device_name: str) -> Path:
    """The file that holds a device's entries."""
    return folder / f"{re.sub(r'[^a-z0-9]+', '-', device_name.lower()).strip('-')}.json"


def read_table(path: Path) -> list[Entry]:
    """The entries of one file; none, and a warning, where it is truncated, foreign, of a newer format, not as it was
    written, or says what no kernel can be launched with."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']}, not {FORMAT}")
        # Tables from before digests have none.
        if content.get("sha256", digest := _digest(content["entries"])) != digest:
            raise ValueError("it is not as it was written (SHA-256)")
        _check_names(content, {"format", "entries"}, {"sha256"})
        return [_entry(item) for item in content["entries"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(f"{path} is not a tuning table and is ignored: {error!r}; run `psaq tune`", stacklevel=2)
        return []


def merge_into_table(path: Path, entries: Iterable[Entry]) -> None:
    """Add ``entries`` to a table, replacing those with the same key; safe against another process doing the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_suffix(".lock")):
        merged = {entry.key: entry for entry in (*read_table(path), *entries)}
        items = [asdict(merged[key]) for key in sorted(merged)]
        content = {"format": FORMAT, "entries": items, "sha256": _digest(items)}
        _write_whole(path, json.dumps(content, indent=1) + "\n")
    forget_tables()


def forget_tables() -> None:
    """Read the tables anew at the next look-up."""
    _all_entries.cache_clear()
    _configuration.cache_clear()


@lru_cache(maxsize=1)
def _all_entries() -> tuple[Entry, ...]:
    """The user's entries before the shipped ones."""
    files = [path for folder in (cache_folder(), SHIPPED) for path in sorted(folder.glob("*.json"))]
    return tuple(entry for path in files for entry in read_table(path))


def _entry(item: Mapping[str, Any]) -> Entry:
    _check_names(item, {field.name for field in fields(Entry)})
    _check_names(item["config"], {field.name for field in fields(Config)})
    texts = {name: item[name] for name in ("operation", "bucket", "source", "triton", "device", "capability")}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise TypeError(f"{name} is a text, not {text!r}")
    config = Config(
        constants={name: _constant(value) for name, value in item["config"]["constants"].items()},
        num_warps=_whole("num_warps", item["config"]["num_warps"], _MOST_WARPS),
        num_stages=_whole("num_stages", item["config"]["num_stages"], _MOST_STAGES),
    )
    if config.num_warps & (config.num_warps - 1):
        raise ValueError(f"num_warps is a power of two, not {config.num_warps}")
    return Entry(**texts, config=config, default_us=_time(item["default_us"]), best_us=_time(item["best_us"]))


def _check_names(item: Mapping[str, Any], wanted: set[str], optional: Iterable[str] = ()) -> None:
    wrong = item.keys() - wanted - {*optional} | wanted - item.keys()
    if wrong:
        raise ValueError(f"{min(wrong)} is unknown or missing")


def _constant(value: Any) -> int | str:
    return value if isinstance(value, str) else _whole("a kernel constant", value, _LARGEST)


def _whole(name: str, value: Any, most: int) -> int:
    if type(value) is not int:
        raise TypeError(f"{name} is a whole number, not {value!r}")
    if not 0 <= value <= most:
        raise ValueError(f"{name} is within [0, {most}], not {value}")
    return value


def _time(value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise ValueError(f"a time is a positive number of microseconds, not {value!r}")
    return float(value)


def _digest(items: Any) -> str:
    """The SHA-256 of entries, however their file is indented."""
    return hashlib.sha256(json.dumps(items, sort_keys=True).encode()).hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write_whole(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)

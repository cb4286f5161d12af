"""Settings as JSON records them, and in what a record differs from the settings of now."""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

_NAMED = 3  # settings that an error lists


def as_json(value: Any) -> Any:
    """Dataclasses, paths and tuples as what JSON has for them; None for NaN, which it has not."""
    if is_dataclass(value) and not isinstance(value, type):
        return as_json(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    return str(value) if isinstance(value, Path) else value


def difference(recorded: Any, now: Any, besides: Collection[str] = ()) -> str:
    """The first few settings in which a record differs from those of ``now``, by dotted name, ``besides`` those that
    may; "" where they agree.

    A record is of the version that wrote it: an option of a dataclass that came later, or whose default was another
    then (its class names those in ``earlier_defaults``), agrees where it stands at its default now.
    """
    before, after, earlier = dict(_settings(recorded)), dict(_settings(as_json(now))), dict(_earlier(now))
    agreeing = {name for name, values in earlier.items() if name not in before or before[name] in values}
    other = [name for name in {**before, **after} if name not in before or before[name] != after.get(name)]
    names = [name for name in other if name not in agreeing and name not in besides]
    return ", ".join(f"{name} {before.get(name)!r}, not {after.get(name)!r}".strip() for name in names[:_NAMED])


def _settings(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield name, value
        return
    for key, item in value.items():
        yield from _settings(item, _dotted(name, key))


def _earlier(value: Any, name: str = "") -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Options of dataclasses that stand at their default, each with what it was before."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _earlier(item, _dotted(name, key))
    elif is_dataclass(value):
        defaults = getattr(value, "earlier_defaults", {})
        for option in fields(value):
            item, dotted = getattr(value, option.name), _dotted(name, option.name)
            yield from _earlier(item, dotted)
            if not is_dataclass(item) and item == _default(option):
                yield dotted, defaults.get(option.name, ())


def _default(option: Field[Any]) -> Any:
    return option.default if option.default_factory is MISSING else option.default_factory()


def _dotted(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)

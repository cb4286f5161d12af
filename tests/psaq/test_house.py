"""Who may import whom: downwards only, between the rooms of psaq and between the wings."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FLOORS = [
    ["choices", "digests", "errors", "lazy", "settings", "suggestions"],
    ["distributed", "files", "locks", "program", "progress", "runs"],
    ["rendering"],
    ["models"],
    ["images"],
    ["tasks"],
    ["losses"],
    ["synthesis"],
    ["quantization"],
    ["density", "evaluation"],
    ["evolution"],
    [""],
    ["benchmarks", "figures", "tables", "training"],
    ["reports"],
    ["experiments"],
    ["commands"],
    ["cli", "plot_density", "tune"],
    ["__main__"],
]
"""The rooms of psaq from the ground up, "" being the public names; rooms of one floor may be built on each other, but
not in a circle."""
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
WINGS = {"psaq": {"psaq_kernels", "psaq_plots"}, "kernels/psaq_kernels": set(), "plots/psaq_plots": set()}
"""Folder of a package → the other packages of the house that it is built on."""

NEWER = {
    "datetime.UTC",
    "tomllib",
    *(f"enum.{name}" for name in ("ReprEnum", "StrEnum", "member", "nonmember", "verify")),
    *(f"typing.{name}" for name in ("LiteralString", "Never", "NotRequired", "Required", "Self", "TypeVarTuple")),
    *(f"typing.{name}" for name in ("Unpack", "assert_never", "assert_type", "override", "reveal_type")),
}
"""Names of the standard library that Python 3.10 lacks."""


def imported(file: Path) -> Iterator[str]:
    """The modules whose names a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path: Path | str) -> str:
    """Where a file, or an imported name, belongs."""
    if isinstance(path, Path):
        return path.relative_to(ROOT / "psaq").with_suffix("").parts[0].replace("__init__", "")
    name = path.split(".")[1]
    return name if (ROOT / "psaq" / name).is_dir() or (ROOT / "psaq" / f"{name}.py").is_file() else ""


@cache
def built_on() -> dict[str, set[str]]:
    """Room → the others whose names its files import."""
    rooms: dict[str, set[str]] = {}
    for file in (ROOT / "psaq").rglob("*.py"):
        names = {room(name) for name in imported(file) if name.startswith("psaq.")}
        rooms.setdefault(room(file), set()).update(names - {room(file)})
    del rooms[""]  # the public names stand for what is below them and are loaded when first used
    return rooms


def test_every_room_has_its_floor():
    assert built_on().keys() <= LEVEL.keys()


@pytest.mark.parametrize("upper", sorted(built_on()))
def test_no_room_is_built_on_one_above_it(upper):
    above = {lower for lower in built_on()[upper] if LEVEL[lower] > LEVEL[upper]}
    assert not above, f"psaq.{upper} imports from {', '.join(sorted(above))}, above it"


def test_rooms_of_one_floor_are_in_no_circle():
    rooms, left = built_on(), set(LEVEL)
    while standing := {one for one in left if not rooms.get(one, set()) & left - {one}}:
        left -= standing
    assert not left


@pytest.mark.parametrize("wing", WINGS)
def test_the_wings_stand_by_themselves(wing):
    others = {"psaq", "psaq_kernels", "psaq_plots"} - {wing.rpartition("/")[2]} - WINGS[wing]
    for file in (ROOT / wing).rglob("*.py"):
        assert not others & {name.partition(".")[0] for name in imported(file)}, file


def test_all_wings_run_on_the_oldest_python_that_is_promised():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    promised = re.findall(
        r'requires-python = ">=3\.(\d+)"|target-version = "py3(\d+)"|python_version = "3\.(\d+)"', text
    )
    assert ["".join(each) for each in promised] == ["10"] * 3, "packaging, ruff and mypy go by one Python"
    files = [file for wing in ("psaq", "kernels", "plots") for file in (ROOT / wing).rglob("*.py")]
    newer = {str(file): found for file in files if (found := NEWER & {*names(file)})}
    assert not newer


def names(file: Path) -> Iterator[str]:
    """What a file imports, modules included."""
    yield from imported(file)
    yield from (name.rpartition(".")[0] for name in imported(file))


def test_what_runs_by_itself_is_called_as_it_is_started():
    for file in (ROOT / "psaq").rglob("*.py"):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for call in re.findall(r"^    run_command\((?!_find)(.*)\)$", file.read_text(encoding="utf-8"), re.MULTILINE):
            assert call.endswith(f'prog="python -m {module}"'), f"{module}: Ctrl-C names another command to go on by"

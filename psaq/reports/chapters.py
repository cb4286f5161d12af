"""The chapters of a page that are made of pictures: part by part of the run, in the order in which they are read."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from psaq.reports import sections
from psaq.reports.pictures import Picture

DENSITIES = ("density", "similarity")
"""The run's pictures of what its images do to attention."""


@dataclass(frozen=True)
class Group:
    """What a chapter has of one part of the run, nameless for the whole run. ``words``: source → what it says."""

    name: str
    pictures: list[Picture]
    words: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Chapter:
    """Pictures under one heading."""

    heading: str
    groups: list[Group]


def chapters(folder: Path) -> list[Chapter]:
    """The chapters that the run left anything for. Raises PsaqError where one of its files is damaged."""
    found = sections.found_pictures(folder)
    shown = [picture for picture in found if picture.stem not in DENSITIES]
    densities = [picture for picture in found if picture.stem in DENSITIES]
    everything = [
        Chapter("Round by round", _groups(sections.rounds_pictures(folder), {})),
        Chapter("Pictures", _groups([*shown, *sections.losses_pictures(folder)], {})),
        Chapter("Patch-similarity densities", _groups(densities, sections.density_verdicts(folder))),
    ]
    return [chapter for chapter in everything if chapter.groups]


def result_pictures(results: Mapping[str, Any]) -> Iterator[Picture]:
    """What came of the run, drawn from its numbers."""
    if rows := results.get("table"):
        yield sections.accuracy_picture(rows)
    if sqnr := results.get("layer_sqnr"):
        yield sections.layer_errors_picture(sqnr)


def _groups(pictures: Iterable[Picture], words: Mapping[str, dict[str, str]]) -> list[Group]:
    by_part: dict[str, list[Picture]] = {}
    for picture in pictures:
        by_part.setdefault(picture.part, []).append(picture)
    parts = sorted({*by_part, *words})
    return [Group(part, by_part.get(part, []), words.get(part, {})) for part in parts]

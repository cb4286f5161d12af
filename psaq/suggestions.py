"""What was probably meant by a name that nobody knows."""

from collections.abc import Iterable
from difflib import get_close_matches

_SHORT_LIST = 8


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error's sentence: up to three of the ``known`` names that are near, and all of them where they are
    few: "; did you mean paper? (paper, accurate)". Nothing where they are many and none is near."""
    names = [*dict.fromkeys(known)]
    by_lower = {other.lower(): other for other in names}
    near = [by_lower[match] for match in get_close_matches(name.lower(), by_lower, n=3, cutoff=0.7)]
    all_of_them = ", ".join(names) if len(names) <= _SHORT_LIST else ""
    if near:
        return f"; did you mean {' or '.join(near)}?{f' ({all_of_them})' if all_of_them else ''}"
    return f"; choose from {all_of_them}" if all_of_them else ""

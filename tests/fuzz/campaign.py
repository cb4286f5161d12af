"""Files damaged at random, thousands of each format: what is read of them is right or refused.

    python tests/fuzz/campaign.py --count 10000 --seed 0

prints how many were refused, harmless (read to the very same), silent (read to something else) and raw (an error that
is not psaq's own), by format and kind of damage, and fails where any was silent or raw.
"""

import argparse
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from fuzz.formats import FORMATS, Format

from psaq.errors import PsaqError

OUTCOMES = ("refused", "harmless", "silent", "raw")
Tally = dict[str, Counter[str]]
"""Kind of damage → outcome → how often."""


def campaign(form: Format, count: int, seed: int, folder: Path) -> Tally:
    """Damage a file of this format ``count`` times, every kind in turn, and read it."""
    path = form.make(folder)
    whole = path.read_bytes()
    right = _fingerprint(form.read(path))
    draw = random.Random(f"{seed} {form.name}")
    kinds = [*DAMAGES, *([MISSTATED] if form.misstate else [])]
    tally: Tally = {kind: Counter() for kind in kinds}
    for index in range(count):
        kind = kinds[index % len(kinds)]
        path.write_bytes(whole if kind == MISSTATED else DAMAGES[kind](whole, draw))
        if kind == MISSTATED and form.misstate:
            form.misstate(path, draw)
        tally[kind][_outcome(form, path, right)] += 1
    return tally


def _outcome(form: Format, path: Path, right: str) -> str:
    try:
        return "harmless" if _fingerprint(form.read(path)) == right else "silent"
    except PsaqError:
        return "refused"
    except Exception:
        return "raw"


def _fingerprint(value: Any) -> str:
    """All of a value as text, tensors to their last bit."""
    if isinstance(value, torch.Tensor):
        return (
            f"{value.dtype}{tuple(value.shape)}{value.detach().reshape(-1).view(torch.uint8).numpy().tobytes().hex()}"
        )
    if isinstance(value, dict):
        return str({name: _fingerprint(item) for name, item in value.items()})
    if is_dataclass(value):
        return _fingerprint([getattr(value, field.name) for field in fields(value)])
    return str([_fingerprint(item) for item in value]) if isinstance(value, list | tuple) else repr(value)


# Damage ---------------------------------------------------------------------------------------------------------------


def _bit(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    return _with(content, place, bytes([content[place] ^ 1 << draw.randrange(8)]))


def _byte(content: bytes, draw: random.Random) -> bytes:
    return _with(content, draw.randrange(len(content)), draw.randbytes(1))


def _zeros(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    return _with(content, place, bytes(min(draw.randint(1, 64), len(content) - place)))


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def _hole(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    return content[:place] + content[place + draw.randint(1, 64) :]


def _again(content: bytes, draw: random.Random) -> bytes:
    """A stretch that stands twice."""
    place = draw.randrange(len(content))
    end = place + draw.randint(1, 64)
    return content[:end] + content[place:]


def _noise(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content) + 1)
    return content[:place] + draw.randbytes(draw.randint(1, 16)) + content[place:]


def _swapped(content: bytes, draw: random.Random) -> bytes:
    """Two neighbouring stretches in the other order."""
    length = draw.randint(1, 16)
    place = draw.randrange(max(1, len(content) - 2 * length))
    middle, end = place + length, place + 2 * length
    return content[:place] + content[middle:end] + content[place:middle] + content[end:]


def _digit(content: bytes, draw: random.Random) -> bytes:
    """Another digit among those that text and metadata hold."""
    end = content.rfind(b"}}") if content[8:9] == b"{" else len(content)
    places = [place for place in range(end) if content[place : place + 1].isdigit()]
    return _with(content, draw.choice(places), str(draw.randrange(10)).encode())


def _line(content: bytes, draw: random.Random) -> bytes:
    """A line, or what stands between two commas, is lost."""
    mark = b"\n" if b"\n" in content and content[8:9] != b"{" else b","
    lines = content.split(mark)
    lines.pop(draw.randrange(len(lines)))
    return mark.join(lines)


def _with(content: bytes, place: int, new: bytes) -> bytes:
    return content[:place] + new + content[place + len(new) :]


MISSTATED = "misstated"
"""Rewritten to say what cannot be, with a digest that fits or none: a check of meaning has to see it."""

DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bit": _bit,
    "byte": _byte,
    "zeros": _zeros,
    "cut": _cut,
    "hole": _hole,
    "again": _again,
    "noise": _noise,
    "swapped": _swapped,
    "digit": _digit,
    "line": _line,
}


# Report ---------------------------------------------------------------------------------------------------------------


def markdown(tallies: dict[str, Tally]) -> str:
    """Format × kind of damage: refused / harmless / silent / raw."""
    kinds = [*DAMAGES, MISSTATED]
    lines = [["format", *kinds, *OUTCOMES], ["---"] * (1 + len(kinds) + len(OUTCOMES))]
    for name, tally in tallies.items():
        cells = [
            " / ".join(str(tally[kind][outcome]) for outcome in OUTCOMES) if kind in tally else "" for kind in kinds
        ]
        lines.append([name, *cells, *(str(total(tally, outcome)) for outcome in OUTCOMES)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def total(tally: Tally, outcome: str) -> int:
    """How often this came of any damage."""
    return sum(outcomes[outcome] for outcomes in tally.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign. Returns how many files were silent or raw, at most 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="damaged files of each format")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    tallies: dict[str, Tally] = {}
    for form in FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            tallies[form.name] = campaign(form, options.count, options.seed, Path(folder))
        print({form.name: {outcome: total(tallies[form.name], outcome) for outcome in OUTCOMES}}, flush=True)
    print(f"\n{markdown(tallies)}")
    return min(1, sum(total(tally, outcome) for tally in tallies.values() for outcome in ("silent", "raw")))


if __name__ == "__main__":
    sys.exit(main())

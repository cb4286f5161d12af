"""Where an evolution stands, on disk as it is in memory: killed, it goes on as if it had not been."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from psaq.errors import PsaqError
from psaq.files import load_tensors, read_record, save_tensors, write_record
from psaq.settings import as_json, difference

KIND = "evolution state"
_STUDENT, _BEST = "student.", "best."
LENGTH = ("rounds", "minutes")
"""Options that say how long to go on, which no round depends on."""


@dataclass(frozen=True)
class Round:
    """What came of one round; round 0 is the start."""

    number: int
    image_sqnr: float
    """Signal to noise of the answers to the images kept aside and to what the recipe adds to these, in dB, the mean of
    the images' own: what rounds are judged by."""
    disagreement: float
    """Of the same answers, by the configuration's measure."""
    agreement: float | None
    """In how much of what they answer to the images kept aside the two models agree, in percent."""
    entropy: float | None = None
    """Of the new images at their last step, summed over layers, in nats."""
    image_loss: float | None = None
    """What these minimised, at their last step."""
    student_loss: float | None = None
    """The mean of the student's loss over its turn."""
    seconds: float = 0.0
    """Of both turns and the judging."""


@dataclass
class State:
    """Everything that a further round depends on."""

    pool: Float[Tensor, "images channels height width"]
    """All images that the student learns from, the oldest first."""
    student: dict[str, Tensor]
    best: dict[str, Tensor]
    """The student of the round that was judged best."""
    strip: list[UInt8[Tensor, "shown 3 height width"]] = field(default_factory=list)
    """The first new images of every round, in true colours."""
    rounds: list[Round] = field(default_factory=list)
    planned: int | None = None
    """Rounds in all, once that is known."""

    @property
    def best_round(self) -> int:
        """The round whose student answers most as its teacher does."""
        return max(self.rounds, key=lambda each: each.image_sqnr).number

    def save(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Write it, whole or not at all. ``identity`` says whose state it is."""
        tensors = {"pool": self.pool, **_prefixed(_STUDENT, self.student), **_prefixed(_BEST, self.best)}
        if self.strip:
            tensors["strip"] = torch.stack(self.strip)
        header = {"identity": as_json(identity), "rounds": list(map(asdict, self.rounds)), "planned": self.planned}
        save_tensors(path, tensors, KIND, header)


def claim(path: Path, identity: Mapping[str, Any]) -> None:
    """Write down whose folder it is, before anything else is there. Raises PsaqError for another evolution's folder."""
    if path.exists():
        _check_same(path, read_record(path), identity)
    else:
        write_record(path, as_json(identity))


def load_state(path: Path, identity: Mapping[str, Any], like: Mapping[str, Tensor]) -> State:
    """Read the state of the evolution that ``identity`` describes, of a student with such tensors. A plan for another
    number of minutes is none.

    Raises:
        PsaqError: the file is damaged, belongs to a run with another model or configuration, or holds what no run
            comes to.
    """
    tensors, header = load_tensors(path, KIND)
    found = header.get("identity")
    if not isinstance(found, dict) or header.keys() != {"identity", "rounds", "planned"} or "pool" not in tensors:
        raise PsaqError(f"{path}: lacks a part, or holds something else; remove it to start again")
    _check_same(path, found, identity)
    state = State(
        pool=tensors["pool"],
        student=_without(_STUDENT, tensors),
        best=_without(_BEST, tensors),
        strip=list(tensors.get("strip", torch.zeros(0))),
        rounds=_rounds(path, header["rounds"]),
        planned=header["planned"],
    )
    wrong = next((what for what, is_right in _invariants(state, like) if not is_right), None)
    if wrong is not None:
        raise PsaqError(f"{path}: is damaged: {wrong}; remove it to start again")
    if found["config"].get("minutes") != as_json(identity)["config"].get("minutes"):
        state.planned = None
    return state


def _check_same(path: Path, found: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    if other := difference(found, identity, besides=[f"config.{name}" for name in LENGTH]):
        raise PsaqError(f"{path}: belongs to another run ({other}); name another folder, or remove it")


def _rounds(path: Path, entries: Any) -> list[Round]:
    names = {each.name for each in fields(Round)}
    if not isinstance(entries, list) or not all(isinstance(e, dict) and e.keys() == names for e in entries):
        raise PsaqError(f"{path}: is damaged: its rounds are no records; remove it to start again")
    return [Round(**entry) for entry in entries]


def _invariants(state: State, like: Mapping[str, Tensor]) -> Iterator[tuple[str, bool]]:
    """What holds of every state, each with whether it does; a later one counts on those before it."""
    pool = state.pool
    yield "its images are no pictures", pool.ndim == 4 and len(pool) > 0 and bool(pool.isfinite().all())
    shown = [
        picture for picture in state.strip if picture.dtype != torch.uint8 or picture.shape[-3:] != (3, *pool.shape[2:])
    ]
    yield "its strip is of other pictures", not shown
    for who, tensors in (("student", state.student), ("best student", state.best)):
        shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        yield f"its {who} is of other tensors", shapes == {n: (t.shape, t.dtype) for n, t in like.items()}
        yield f"its {who} holds NaN or infinity", all(bool(tensor.isfinite().all()) for tensor in tensors.values())
        scales = [tensor for name, tensor in tensors.items() if name.rpartition(".")[2] == "scale"]
        yield f"a scale of its {who} is not positive", all(bool((scale > 0).all()) for scale in scales)
    numbers = [each.number for each in state.rounds]
    yield "its rounds are not in order", numbers == list(range(len(numbers))) and len(numbers) > 0
    figures = [value for each in state.rounds for value in vars(each).values() if value is not None]
    yield "a round holds no numbers", all(type(value) in (int, float) for value in figures)
    planned = state.planned
    yield "its plan is no number of rounds", planned is None or (type(planned) is int and planned >= len(numbers) - 1)


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor.clone() for name, tensor in tensors.items()}


def _without(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

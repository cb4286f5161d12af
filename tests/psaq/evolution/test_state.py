"""A state that no evolution comes to is refused."""

import pytest
import torch

from psaq.errors import PsaqError
from psaq.evolution.state import KIND, Round, State, load_state
from psaq.files import load_tensors, save_tensors

IDENTITY = {"config": {"rounds": 3}, "recipe": {}, "model": "digest", "images": "none"}
STUDENT = {"weight": torch.ones(2, 2), "scale": torch.ones(2)}


@pytest.fixture
def path(tmp_path):
    rounds = [Round(0, 12.0, 0.5, 90.0), Round(1, float("inf"), 0.4, None, -3.0, 2.0, 0.1, 5.0)]
    strip = [torch.zeros(1, 3, 4, 4, dtype=torch.uint8)]
    State(torch.rand(2, 3, 4, 4), STUDENT, STUDENT, strip, rounds, planned=3).save(tmp_path / "state", IDENTITY)
    return tmp_path / "state"


def test_undamaged_it_is_read(path):
    state = load_state(path, IDENTITY, STUDENT)
    assert (state.best_round, state.planned, len(state.strip)) == (1, 3, 1)
    assert all(torch.equal(tensor, STUDENT[name]) for name, tensor in state.student.items())


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("pool", lambda pool: pool * torch.nan),
        ("pool", lambda pool: pool[0]),
        ("pool", None),
        ("student.weight", lambda weight: weight[:1]),
        ("student.weight", lambda weight: weight.double()),
        ("student.scale", None),
        ("best.scale", lambda scale: scale * torch.inf),
        ("student.scale", lambda scale: scale * 0),
        ("best.speed", lambda _: torch.ones(1)),
        ("strip", lambda strip: strip.float()),
        ("strip", lambda strip: strip[:, :, :, :2]),
    ],
)
def test_tensors_that_cannot_be_are_refused(path, name, change):
    tensors, header = load_tensors(path, KIND)
    other = {**tensors, name: change(tensors.get(name))} if change else {k: v for k, v in tensors.items() if k != name}
    save_tensors(path, other, KIND, header)
    with pytest.raises(PsaqError, match=r"state.*remove it to start again"):
        load_state(path, IDENTITY, STUDENT)


@pytest.mark.parametrize(
    "change",
    [
        {"planned": 0},
        {"planned": 2.0},
        {"rounds": []},
        {"rounds": [{"number": 0}]},
        {"rounds": 3},
        {"identity": [1]},
        {"speed": 1},
    ],
    ids=str,
)
def test_words_that_cannot_be_are_refused(path, change):
    tensors, header = load_tensors(path, KIND)
    save_tensors(path, tensors, KIND, {**header, **change})
    with pytest.raises(PsaqError, match=r"state.*remove it to start again"):
        load_state(path, IDENTITY, STUDENT)


@pytest.mark.parametrize(("name", "value"), [("number", 5), ("image_sqnr", "low"), ("agreement", [1.0])])
def test_rounds_that_cannot_be_are_refused(path, name, value):
    tensors, header = load_tensors(path, KIND)
    header["rounds"][1][name] = value
    save_tensors(path, tensors, KIND, header)
    with pytest.raises(PsaqError, match=r"state.*remove it to start again"):
        load_state(path, IDENTITY, STUDENT)

"""A checkpoint that no run comes to is refused."""

import pytest
import torch

from psaq.errors import PsaqError
from psaq.files import load_tensors, save_tensors
from psaq.synthesis.state import KIND, BatchState, load_batch

IDENTITY = {"config": {"steps": 3}, "model": "digest", "batch": 0}
CPU = torch.device("cpu")


@pytest.fixture
def path(tmp_path):
    draw = torch.Generator().manual_seed(0)
    pixels, mean, square = (torch.rand(*shape, 3, 4, 4, generator=draw) for shape in ((2,), (2, 2), (2, 2)))
    film = torch.zeros(2, 1, 3, 4, 4, dtype=torch.uint8)
    batch = BatchState(pixels, torch.tensor([0, 2]), mean, square, torch.zeros(3, 4), film, step=2)
    batch.save(tmp_path / "batch.safetensors", IDENTITY)
    return tmp_path / "batch.safetensors"


def test_undamaged_it_is_read(path):
    assert load_batch(path, IDENTITY, CPU).step == 2


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("pixels", lambda pixels: pixels * torch.nan),
        ("pixels", lambda pixels: pixels[:1]),
        ("pixels", lambda pixels: pixels.double()),
        ("labels", lambda labels: labels[:1]),
        ("mean_gradient", lambda mean: mean * torch.inf),
        ("mean_gradient", lambda mean: mean[:1]),
        ("mean_gradient", lambda mean: mean[0]),
        ("mean_square", lambda square: square - 1),
        ("history", lambda history: history[:, :3]),
        ("history", lambda history: history + torch.nan),
        ("history", lambda history: history[:1]),
        ("film", lambda film: film.float()),
        ("film", lambda film: film[..., :2]),
        ("speed", lambda _: torch.ones(1)),
        ("mean_square", None),
    ],
)
def test_tensors_that_cannot_be_are_refused(path, name, change):
    tensors, header = load_tensors(path, KIND)
    other = {**tensors, name: change(tensors.get(name))} if change else {k: v for k, v in tensors.items() if k != name}
    save_tensors(path, other, KIND, header)
    with pytest.raises(PsaqError, match=r"batch\.safetensors.*remove it to start again"):
        load_batch(path, IDENTITY, CPU)


@pytest.mark.parametrize("change", [{"step": -1}, {"step": 4}, {"step": 1.0}, {"identity": [1]}, {"speed": 1}])
def test_words_that_cannot_be_are_refused(path, change):
    tensors, header = load_tensors(path, KIND)
    save_tensors(path, tensors, KIND, {**header, **change})
    with pytest.raises(PsaqError, match=r"batch\.safetensors.*remove it to start again"):
        load_batch(path, IDENTITY, CPU)

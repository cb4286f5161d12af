"""Work shared by ranks: who does what, one result for all, one error for all."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from launch import TORCHRUN, environment
from torch import nn

from psaq.commands.quantize import Quantize
from psaq.distributed import (
    broadcast_module,
    first_says,
    from_first,
    gather_dealt,
    is_first,
    launched,
    own_share,
    rank,
    together,
    world_size,
)
from psaq.errors import PsaqError
from psaq.program import run_command

SHARES = ["[0, 2, 4]", "[1, 3]"]
ALIKE = [
    "gathered [[], [1], [2, 2], [3, 3, 3], [4, 4, 4, 4]]",
    "from the first [1.5, 2.5]",
    "the first says True",
    "module 0.0 0",
    "SharedError: rank 1 is the one that failed",
    "SharedError: both failed (0)",
]


def share(number: int) -> Iterator[str]:
    """What every rank does in the launch below, and what it finds."""
    own = own_share(range(5))
    yield f"{list(own)}"
    gathered = gather_dealt([torch.full((number,), number, dtype=torch.uint8) for number in own], 5)
    yield f"gathered {[tensor.tolist() for tensor in gathered]}"
    yield f"from the first {from_first(lambda: torch.tensor([1.5, 2.5], dtype=torch.float64) + number).tolist()}"
    yield f"the first says {first_says(lambda: number == 0)}"
    module = nn.BatchNorm1d(2)
    module.weight.data = torch.full((2, 2), float(number))[:, 0]  # not contiguous
    module.num_batches_tracked.fill_(number)
    broadcast_module(module)
    yield f"module {module.weight.sum().item()} {module.num_batches_tracked.item()}"
    for message in ("rank 1 is the one that failed" * number, f"both failed ({number})"):
        with pytest.raises(PsaqError) as raised, together():
            fail(message)
        yield f"{raised.type.__name__}: {raised.value}"


def fail(message: str) -> None:
    if message:
        raise PsaqError(message)


def test_two_ranks_share_and_agree(tmp_path):
    command = [*TORCHRUN, __file__, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120)
    assert result.returncode == 0, result.stderr
    for number, own in enumerate(SHARES):
        assert (tmp_path / str(number)).read_text().splitlines() == [own, *ALIKE]


def test_one_process_does_it_all():
    tensors = [torch.tensor([1.0]), torch.tensor(2)]
    assert (world_size(), is_first(), own_share([1, 2, 3])) == (1, True, [1, 2, 3])
    assert gather_dealt(tensors, 2) == tensors
    assert from_first(lambda: tensors[1]) is tensors[1]
    with pytest.raises(PsaqError, match="as it was"), together():
        raise PsaqError("as it was")


@pytest.fixture
def launch(monkeypatch):
    """The variables of a launch, one of whose processes this is."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)


def test_a_command_that_cannot_be_shared_says_so(launch, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_command(Quantize, ["--out", str(tmp_path / "run")])
    assert stopped.value.code == 2
    assert "without torchrun" in capsys.readouterr().err
    assert not Path(tmp_path / "run").exists()


def test_a_process_too_many_for_the_gpus_is_told(launch, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(PsaqError, match="process 2 of this machine has no GPU of its own: there are 2"), launched():
        pass


if __name__ == "__main__":
    with launched():
        (Path(sys.argv[1]) / str(rank())).write_text("\n".join(share(rank())))

"""Several processes of one launch: who does which share of the work, and one result for all.

Started by ``torchrun``, a command runs once per rank. Work is dealt out by index, so that a share depends on the number
of ranks and on nothing else, and every result is gathered in the order one process would have made it in. Without a
launch every function here does what one process alone would.
"""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from psaq.errors import PsaqError

T = TypeVar("T")

_LAUNCH = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_PATIENCE = timedelta(hours=12)  # a rank may wait for another's whole synthesis; a lost one is noticed at once
_DTYPES = (torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8)
_MAX_DIMENSIONS = 6


class SharedError(PsaqError):
    """An error that every rank raises alike: one of them is enough to print it."""


class LostRankError(PsaqError):
    """A process of the launch ended before its work did."""


def is_launched() -> bool:
    """Whether torchrun, or a launcher that sets the same variables, started this process."""
    return all(name in os.environ for name in _LAUNCH)


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if _joined() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if _joined() else 1


def local_size() -> int:
    """The number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if _joined() else 1


def is_first() -> bool:
    """Whether this process prints and writes for all."""
    return rank() == 0


def say(text: str) -> None:
    """Print once, whatever the number of processes."""
    if is_first():
        print(text, flush=True)


@contextmanager
def launched() -> Iterator[None]:
    """Be one of the launch's ranks inside the block: over NCCL between GPUs, over gloo between CPUs.

    Raises:
        PsaqError: a rank without a GPU of its own, or a launch whose ranks do not find each other.
        LostRankError: another rank was lost, or the launcher ended this one.
    """
    _join()
    previous = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
        dist.destroy_process_group()
    finally:
        signal.signal(signal.SIGTERM, previous)


def own_share(items: Sequence[T]) -> Sequence[T]:
    """Every so manyth item, from this rank's number on: the items are dealt out like cards."""
    return items[rank() :: world_size()]


def gather_dealt(own: Sequence[Tensor], total: int) -> list[Tensor]:
    """What every rank made of its share, in the order of the items that `own_share` dealt out.

    Args:
        own: a tensor per item of this rank's share; shapes may differ.
        total: the number of items that were dealt out.
    """
    size = world_size()
    return [
        broadcast(own[index // size] if index % size == rank() else None, index % size) if size > 1 else own[index]
        for index in range(total)
    ]


def broadcast(tensor: Tensor | None, source: int = 0) -> Tensor:
    """Rank ``source``'s tensor on every rank's CPU; the other ranks' argument does not matter."""
    if world_size() == 1:
        return _present(tensor)
    header = torch.zeros(2 + _MAX_DIMENSIONS, dtype=torch.int64)
    if rank() == source:
        tensor = _present(tensor).detach().cpu().contiguous()
        header[: 2 + tensor.ndim] = torch.tensor([_DTYPES.index(tensor.dtype), tensor.ndim, *tensor.shape])
    _broadcast_in_place(header, source)
    dtype, dimensions, *shape = header.tolist()
    if rank() != source:
        tensor = torch.empty(shape[:dimensions], dtype=_DTYPES[dtype])
    _broadcast_in_place(_present(tensor), source)
    return _present(tensor)


def broadcast_module(module: nn.Module) -> None:
    """Give every rank the first one's weights and buffers, bit for bit."""
    if world_size() > 1:
        for tensor in module.state_dict().values():
            whole = tensor.contiguous()
            _broadcast_in_place(whole, source=0)
            tensor.copy_(whole)


def from_first(make: Callable[[], Tensor]) -> Tensor:
    """What ``make`` returns on the first rank, which alone calls it. Its PsaqError is every rank's."""
    made = None
    with together():
        if is_first():
            made = make()
    return broadcast(made)


def first_says(question: Callable[[], bool]) -> bool:
    """The first rank's answer, on every rank: so that all do the same, whatever each would see on disk."""
    return bool(from_first(lambda: torch.tensor(int(question()))))


@contextmanager
def together() -> Iterator[None]:
    """Wait for every rank at the end of the block; a PsaqError of one is raised on all.

    Raises:
        SharedError: with the message of the lowest rank that failed.
    """
    if world_size() == 1:
        yield
        return
    message = ""
    try:
        yield
    except LostRankError:
        raise
    except PsaqError as error:
        message = str(error) or type(error).__name__
    first = next(filter(None, _everyones(message)), None)
    if first is not None:
        raise SharedError(first)


def _everyones(text: str) -> list[str]:
    own = torch.frombuffer(bytearray(text.encode() + b"\0"), dtype=torch.uint8)
    return [
        bytes(broadcast(own if index == rank() else None, index)[:-1].tolist()).decode()
        for index in range(world_size())
    ]


def _join() -> None:
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(_own_gpu())
    try:
        dist.init_process_group(backend, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise PsaqError(f"the launch's processes did not find each other ({_first_line(error)})") from error


def _own_gpu() -> int:
    local, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= there:
        raise PsaqError(f"process {local} of this machine has no GPU of its own: there are {there}; start as many")
    return local


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def _broadcast_in_place(tensor: Tensor, source: int) -> None:
    try:
        dist.broadcast(tensor, source)
    except RuntimeError as error:  # gloo's and NCCL's word for a closed connection
        raise _lost(f"another process of the launch was lost ({_first_line(error)})") from error


def _stop(*_: Any) -> None:
    raise _lost("told to stop, as a launcher does when another of its processes was lost")


def _lost(what: str) -> LostRankError:
    return LostRankError(
        f"rank {rank()} of {world_size()}: {what}; what was finished is kept, and the same command goes on from there"
    )


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]

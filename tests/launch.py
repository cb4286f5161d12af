"""Programs under torchrun, on gloo's ranks on this machine."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def environment() -> dict[str, str]:
    """As many threads in every process as here, so that all compute the same bits, and no GPU."""
    threads, paths = str(torch.get_num_threads()), os.pathsep.join(sys.path)
    return {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}


def start(command: list[str], log: Path) -> subprocess.Popen[str]:
    """Run ``command`` with both its streams in ``log``."""
    with log.open("w") as stream:
        return subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, text=True, env=environment())


def wait_for(folder: Path, pattern: str, process: subprocess.Popen[str], log: Path) -> None:
    """Until a file of ``folder`` matches. Fails where the process ends before."""
    deadline = time.monotonic() + 120
    while not list(folder.glob(pattern)):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"no {pattern} in {folder}: {log.read_text()}"
        time.sleep(0.02)


def rank_of(launcher: subprocess.Popen[str], rank: int) -> psutil.Process:
    """The launcher's process of this rank."""
    children = psutil.Process(launcher.pid).children(recursive=True)
    return next(child for child in children if child.environ().get("RANK") == str(rank))

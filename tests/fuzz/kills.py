"""Commands killed at random moments, over and over: every file that is there is whole, and the end is the same bits.

PYTHONPATH=.:kernels:plots:tests python tests/fuzz/kills.py --kills 50 --seed 0
TRITON_INTERPRET=1 PYTHONPATH=.:kernels:plots:tests python tests/fuzz/kills.py --kills 50 --seed 0 --commands tune
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from psaq.cli import main as psaq
from psaq.digests import WHOLE
from psaq.errors import PsaqError
from psaq.files import read_record, read_safetensors
from psaq_kernels.tuning import read_table

COMMANDS = {
    "synthesize": ["--num-images", "2", "--steps", "8", "--checkpoint-every", "1"],
    "quantize": ["--num-images", "2", "--recipe", "paper", "--precision", "W4A8", "--gaussian"],
    "evolve": [
        *["--num-images", "2", "--kept-aside", "2", "--image-steps", "3", "--rounds", "3", "--steps", "3"],
        *["--batch-size", "2", "--recipe", "paper", "--precision", "W4A4"],
    ],
    "table1": [
        *["--models", "micro_vit", "--recipes", "paper", "--bits", "W8A8", "W4A8", "--methods", "PSAQ", "Gaussian"],
        *["--seeds", "0", "--num-images", "2", "--steps", "4", "--limit", "20"],
    ],
    "tune": ["--model", "micro_vit", "micro_swin", "--batch", "1", "--kernel", "similarity_density.smooth"],
}
"""Name → options that make a run of a few seconds."""
RESULTS = ("images.safetensors", "model.safetensors", "table.csv", "tuned/interpreter.json")


def start(name: str, folder: Path) -> int:
    """The command in a process forked from this one, which has everything imported and has computed nothing."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        where = [] if name == "tune" else ["--out", str(folder)]
        if name == "tune":
            _stand_in_for_a_gpu(folder)
        sys.argv = ["psaq", name, *COMMANDS[name], *where]
        psaq()
        status = 0
    except SystemExit as ended:
        status = int(ended.code or 0)
    finally:
        os._exit(status)


class _InThisProcess:
    """Calls what a worker would."""

    def call(self, function: Callable[..., Any], *arguments: Any, seconds: float) -> Any:
        return function(*arguments)

    def end(self) -> None:
        """It has no process."""


def _stand_in_for_a_gpu(folder: Path) -> None:
    """Triton's interpreter, timed by a clock that launches once and always says the same; the table goes into
    ``folder``."""
    os.environ["PSAQ_CACHE_DIR"] = str(folder)
    from psaq import tune
    from psaq_kernels import density_tunables, tuner
    from psaq_kernels.tunable import MachineRates

    density_tunables.EXAMPLE_BANDWIDTH = density_tunables.EXAMPLE_POINTS = 16
    rates = MachineRates(1e12, {"float32": 1e13, "int8": 1e14})
    stand_ins = {"gpu_clock": lambda launch, milliseconds: (launch(), 3.0)[1], "measure_rates": lambda *_: rates}
    vars(tuner).update(stand_ins)
    vars(tune).update(_gpu=lambda: torch.device("cpu"), _caller=_InThisProcess)


def finish(name: str, folder: Path) -> float:
    """Run a command to its end. Returns the seconds that it took. Raises PsaqError where it fails."""
    started = time.monotonic()
    _, status = os.waitpid(start(name, folder), 0)
    if status:
        raise PsaqError(f"{name}: ended with status {os.waitstatus_to_exitcode(status)}")
    return time.monotonic() - started


def results(folder: Path) -> dict[str, str]:
    """What a run is for, to the bit: of safetensors the digest of all that is in it, for its metadata has no order."""
    files = {name: folder / name for name in RESULTS if (folder / name).exists()}
    return {
        name: read_safetensors(file)[1][WHOLE] if file.suffix == ".safetensors" else file.read_text(encoding="utf-8")
        for name, file in files.items()
    }


def check_whole(folder: Path) -> None:
    """Raise PsaqError where a file that a run left under its name cannot be read."""
    named = (file for file in folder.rglob("*") if not file.name.startswith("."))  # others never came to their end
    for file in named:
        if file.suffix == ".safetensors":
            read_safetensors(file)
        elif file.name == "run.json" or file.parent.name == "cells":
            read_record(file)
        elif file.parent.name == "tuned" and file.suffix == ".json":
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # one that is damaged is ignored with a warning
                read_table(file)


def killed_over_and_over(name: str, kills: int, draw: random.Random, folder: Path) -> int:
    """Kill a command at random moments, letting it go on in between. Returns how often it came to its end.

    Raises:
        PsaqError: a file was not whole, or an end was not that of a run left alone.
    """
    seconds = finish(name, folder / "alone")
    whole, ends, done = results(folder / "alone"), 0, 0
    assert whole
    while done < kills:
        child = start(name, folder / "run")
        time.sleep(draw.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        check_whole(folder / "run")
        killed = os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        done += killed
        if not killed or done % 5 == 0 or done == kills:
            finish(name, folder / "run")
            if results(folder / "run") != whole:
                raise PsaqError(f"{name}: after {done} kills it ended with other bits than alone")
            ends += 1
            shutil.rmtree(folder / "run")
    return ends


def main(arguments: Sequence[str] | None = None) -> None:
    """Kill every command, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    usual = [name for name in COMMANDS if name != "tune"]  # which needs Triton's interpreter, and the others no Triton
    parser.add_argument("--commands", nargs="+", default=usual, choices=[*COMMANDS])
    options = parser.parse_args(arguments)
    for name in options.commands:
        with tempfile.TemporaryDirectory() as folder:
            ends = killed_over_and_over(name, options.kills, random.Random(options.seed), Path(folder))
        print(f"{name}: {options.kills} kills, every file whole, {ends} ends of the same bits", flush=True)


if __name__ == "__main__":
    main()

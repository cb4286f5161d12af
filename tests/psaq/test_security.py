"""What SECURITY.md promises: no network without being asked, no code out of files."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launch import environment

from psaq.errors import PsaqError
from psaq.files import PICKLED
from psaq.models.zoo import load_model

CUT_OFF = """
import sys

tried = []

def refuse(event, arguments):
    network = event == "socket.getaddrinfo" and arguments[0] not in (None, "localhost")
    if event in ("socket.connect", "socket.sendto", "socket.bind"):
        network = isinstance(arguments[1], tuple)  # a file's name is a socket of this machine
    if network:
        tried.append((event, str(arguments)))
        raise OSError(101, "networking is cut off")

sys.addaudithook(refuse)
"""

COMMANDS = """
from psaq.cli import main

def psaq(*arguments):
    sys.argv = ["psaq", *arguments]
    main()

psaq("synthesize", "--model", "micro_vit", "--num-images", "2", "--steps", "2", "--out", "images")
psaq("quantize", "--images", "images", "--precision", "W4A8", "--recipe", "paper", "--out", "quantized")
psaq("evaluate", "--quantized", "quantized", "--scenes", "10", "--out", "evaluated")
psaq("plot-samples", "--generated", "images", "--out", "samples.png")
psaq("report", "quantized")
psaq("doctor")
assert not tried, tried
"""

PUBLISHED = """
import psaq

try:
    psaq.load_model("deit_tiny")
except psaq.PsaqError as error:
    assert tried, "a published model is what the network is for"
    print(error)
"""


def python(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    nothing_cached = {"HF_HOME": str(folder / "hub"), "PSAQ_CACHE_DIR": str(folder / "cache"), "HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [sys.executable, "-c", CUT_OFF + script],
        cwd=folder,
        env=environment() | nothing_cached,
        capture_output=True,
        text=True,
        timeout=500,
    )


def test_the_main_commands_need_no_network(tmp_path):
    done = python(COMMANDS, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "quantized" / "report.html").exists()


def test_only_a_published_models_name_asks_for_it_and_says_so(tmp_path):
    done = python(PUBLISHED, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "deit_tiny" in done.stdout


class _Runs:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", PICKLED)
@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_no_file_of_weights_runs_code(tmp_path, suffix, write):
    path = tmp_path / f"weights{suffix}"
    write({"head.weight": _Runs(tmp_path / "ran")}, path)
    with pytest.raises(PsaqError, match=rf"weights{suffix}"):
        load_model("micro_vit", path)
    assert not (tmp_path / "ran").exists()


def test_no_source_trusts_remote_code():
    sources = [path.read_text(encoding="utf-8") for path in (Path(__file__).parents[2] / "psaq").rglob("*.py")]
    assert len(sources) > 100
    assert not any("trust_remote_code=True" in text or "weights_only=False" in text for text in sources)

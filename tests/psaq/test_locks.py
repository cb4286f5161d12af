"""One process at a time works in a folder; a dead one holds nothing."""

import errno
import os
import signal
import subprocess
import sys

import pytest
from launch import environment

from psaq.errors import PsaqError
from psaq.locks import LOCK_FILE, held
from psaq.runs import RunFolder, read_run

HOLD = """
import sys, time
from pathlib import Path
from psaq.runs import RunFolder
run = RunFolder(Path(sys.argv[1]), "synthesize", {"a": 1}, seed=0)
print("held", flush=True)
time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment()
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_refused_and_told_by_whom(holder, tmp_path):
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(PsaqError, match=rf"process {holder.pid} on .*psaq synthesize\) works in it"):
        RunFolder(tmp_path, "synthesize", {"a": 1}, seed=0)
    assert (tmp_path / "run.json").read_bytes() == before


def test_a_dead_processs_lock_is_taken_over(holder, tmp_path):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / LOCK_FILE).exists()
    RunFolder(tmp_path, "synthesize", {"a": 1}, seed=0).finish({"loss": 1.5})
    assert read_run(tmp_path)["results"] == {"loss": 1.5}
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_process_may_start_again_where_it_stopped(tmp_path):
    first = RunFolder(tmp_path, "synthesize", {}, seed=0)
    second = RunFolder(tmp_path, "synthesize", {}, seed=0)
    assert first.path == second.path
    second.finish({})
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_what_is_gone_holds_nothing(tmp_path):
    lock = held(tmp_path, "work")
    assert (tmp_path / LOCK_FILE).exists()
    del lock
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_lock_that_says_nothing_is_taken(tmp_path):
    (tmp_path / LOCK_FILE).write_text("{")
    assert held(tmp_path, "work").path.exists()


def test_on_a_full_disk_a_folder_is_held_without_a_name(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("psaq.locks.os.write", full)
    lock = held(tmp_path, "work")
    other = subprocess.run(
        [sys.executable, "-c", HOLD, str(tmp_path)], capture_output=True, text=True, env=environment()
    )
    assert "another process works in it" in other.stderr
    lock.release()
    assert not (tmp_path / LOCK_FILE).exists()

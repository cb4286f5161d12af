"""A few of the kills of `kills.py`, in a process of its own that has computed nothing when it forks."""

import subprocess
import sys
from pathlib import Path

import pytest
from launch import environment
from repeats import also


@pytest.mark.parametrize("command", ["quantize", *also("synthesize")])
def test_killed_at_random_moments_it_ends_in_the_same_bits(command):
    script = Path(__file__).with_name("kills.py")
    arguments = [sys.executable, str(script), "--kills", "2", "--commands", command]
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{command}: 2 kills, every file whole")

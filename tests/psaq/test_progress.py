"""Bars where they can be drawn, lines in a log, and nothing where nobody asked."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

from launch import environment

import psaq
from psaq import progress
from psaq.progress import progress_bar

STEPS = """
from psaq import progress
from psaq.progress import note, progress_bar

progress._SHORTEST = 0.0
with progress_bar(range(60), description="synthesising", unit="step") as bar:
    for step in bar:
        bar.set_postfix(loss=step, refresh=False)
        if step == 30:
            note("half of it")
"""


def written(stream: int) -> None:
    """STEPS, with standard error in ``stream``."""
    subprocess.run([sys.executable, "-c", STEPS], stderr=stream, env=environment(), check=True)


def test_a_log_has_a_line_for_every_tenth_and_nothing_drawn_over(tmp_path):
    with (tmp_path / "log").open("wb") as log:
        written(log.fileno())
    text = (tmp_path / "log").read_bytes().decode()
    assert "\r" not in text
    lines = [line for line in text.splitlines() if line.startswith("synthesising: ")]
    assert 1 <= len(lines) <= 10
    assert lines[-1].startswith("synthesising: 100 % (60/60), ")
    assert "step/s" in lines[-1]
    assert "loss=59" in lines[-1]
    assert text.count("psaq: half of it\n") == 1


def test_a_terminal_has_a_bar():
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    written(theirs)
    os.close(theirs)
    text = os.read(ours, 100_000).decode()
    os.close(ours)
    assert text.count("\r") > 2
    assert "synthesising: 100%|" in text
    assert "synthesising: 100 % (" not in text


def test_a_slow_step_says_after_a_while_that_it_goes_on(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_SHORTEST", 0.0)
    monkeypatch.setattr(progress, "_LONGEST", 0.0)
    with progress_bar(description="slow", total=1000) as bar:
        bar.update(7)
        assert "slow: 1 % (7/1000)" in capsys.readouterr().err


def test_what_an_earlier_process_did_counts_towards_the_total(capsys):
    with progress_bar(description="resumed", total=4, unit="step") as bar:
        progress.count_as_done(bar, 3)
        bar.update()
    assert "resumed: 100 % (4/4)" in capsys.readouterr().err


def test_the_total_may_be_unknown(capsys):
    assert list(progress_bar(iter("abc"), description="read", unit="letter")) == ["a", "b", "c"]
    assert capsys.readouterr().err.startswith("read: 3, 00:00 gone, ")


def test_nothing_is_shown_unasked(vit, capsys):
    images = psaq.synthesize(vit, psaq.SynthesisConfig(num_images=2, steps=2, film_frames=0))
    qmodel = psaq.quantize(vit, images, psaq.Recipe.accurate(4, 8, distillation_steps=1))
    psaq.evaluate(qmodel, images, reference=vit)
    psaq.patch_similarity_density(vit, images)
    psaq.sensitivity(vit, images)
    assert capsys.readouterr() == ("", "")
    psaq.synthesize(vit, psaq.SynthesisConfig(num_images=2, steps=2, film_frames=0), progress=True)
    assert "synthesising: 100 %" in capsys.readouterr().err

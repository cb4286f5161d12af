"""Faults while psaq runs: what was there stays whole, the fault is one line, and the same command ends as if nothing
had been."""

import io
import os
import resource
import signal
import sys
from pathlib import Path

import pytest
import torch

from psaq.cli import main
from psaq.commands.evaluate import Evaluate
from psaq.commands.options import ModelOptions
from psaq.commands.quantize import Quantize
from psaq.commands.synthesize import Synthesize
from psaq.errors import PsaqError
from psaq.files import save_tensors, write_record
from psaq.images.synthetic import load_images
from psaq.models.features import PatchFeatureRecorder
from psaq.program import _out_of_memory, run_command, while_read
from psaq.runs import read_run
from psaq.synthesis import SynthesisConfig, synthesize
from psaq.synthesis.state import BatchState
from psaq.tune import Tune

OPTIONS = ["--num-images", "2", "--steps", "6", "--checkpoint-every", "2"]
SHORT = SynthesisConfig(num_images=2, steps=6, checkpoint_every=2)


@pytest.fixture
def small_model(monkeypatch, vit):
    monkeypatch.setattr(ModelOptions, "load", lambda _: vit)
    return vit


def command(folder: Path) -> list[str]:
    return [*OPTIONS, "--out", str(folder)]


def run(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["psaq", "synthesize", *command(folder)])
    run_command(Synthesize, command(folder), prog="psaq synthesize")


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("arguments", [["--help"], ["doctor"], ["evaluate", "--help"]])
def test_where_nobody_reads_on_it_ends_without_a_word(monkeypatch, capfd, arguments, buffered):
    reading, writing = os.pipe()
    os.close(reading)
    output = io.TextIOWrapper(os.fdopen(writing, "wb"), write_through=not buffered)
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(sys, "argv", ["psaq", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    monkeypatch.undo()
    output.close()
    assert ended.value.code == 141
    assert capfd.readouterr().err == ""


def test_another_pipe_that_breaks_is_not_taken_for_the_outputs():
    with pytest.raises(BrokenPipeError), while_read():
        raise BrokenPipeError


def at_the_second_checkpoint(monkeypatch, fault):
    """Let a fault happen where a run has one state on disk and is about to write the next."""
    save, calls = BatchState.save, []

    def saved(self, path, identity):
        calls.append(path)
        if len(calls) == 2:
            fault()
        save(self, path, identity)

    monkeypatch.setattr(BatchState, "save", saved)


def same_images(folder: Path, vit) -> bool:
    whole = synthesize(vit, SHORT, progress=False)
    found = load_images(folder)
    return torch.equal(found.images, whole.images) and torch.equal(found.history["loss"], whole.history["loss"])


@pytest.fixture
def _interruptible():
    """What a shell starts in the background ignores Ctrl-C, and so would the test."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize(
    ("number", "word", "status"), [(signal.SIGTERM, "stopped", 143), (signal.SIGINT, "interrupted", 130)]
)
def test_told_to_stop_it_says_what_goes_on(small_model, tmp_path, monkeypatch, capsys, number, word, status):
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        at_the_second_checkpoint(patch, lambda: os.kill(os.getpid(), number))
        with pytest.raises(SystemExit) as stopped:
            run(tmp_path / "a run", patch)
    assert stopped.value.code == status
    words = [line for line in capsys.readouterr().err.splitlines() if line.startswith("psaq:")]
    assert words == [f"psaq: {word}; to go on: psaq synthesize {' '.join(OPTIONS)} --out '{tmp_path / 'a run'}'"]
    assert signal.getsignal(signal.SIGTERM) is before
    assert len([*(tmp_path / "a run" / "checkpoint").iterdir()]) == 1
    run(tmp_path / "a run", monkeypatch)
    assert same_images(tmp_path / "a run", small_model)


def test_a_quota_is_an_error_and_the_last_state_stays(small_model, tmp_path, monkeypatch, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python does: a write then fails with EFBIG
    try:
        with monkeypatch.context() as patch:
            at_the_second_checkpoint(patch, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1])))
            with pytest.raises(SystemExit) as stopped:
                run(tmp_path, patch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert stopped.value.code == 2
    assert "batch0000.safetensors: could not be written" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["batch0000.safetensors"]
    run(tmp_path, monkeypatch)
    assert same_images(tmp_path, small_model)


@pytest.mark.parametrize(
    "write", [lambda path: save_tensors(path, {"a": torch.ones(9)}, "k", {}), lambda path: write_record(path, {"a": 1})]
)
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, write):
    path = tmp_path / "file"
    write(path)
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("psaq.files._flush_to_disk", full)
    with pytest.raises(PsaqError, match=r"No space left on device\); nothing was changed"):
        write(path)
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]


def test_a_folder_that_cannot_be_written_to_is_an_error(small_model, monkeypatch, capsys):
    if not Path("/proc/self").is_dir():
        pytest.skip("needs a folder that is read-only even for an administrator: /proc")
    with pytest.raises(SystemExit) as stopped:
        run(Path("/proc/self"), monkeypatch)
    assert stopped.value.code == 2
    assert "psaq: error: /proc/" in capsys.readouterr().err


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_stops_synthesis_and_keeps_the_last_good_state(vit, tmp_path, monkeypatch, bad):
    """Once the first state is on disk, after step 2, the second block's features are no numbers."""
    record = PatchFeatureRecorder._record

    def spoilt(self, attended, site):
        record(self, attended, site)
        if site.attention == "blocks.1.attn" and (tmp_path / "batch0000.safetensors").exists():
            self.features[-1] = self.features[-1] * bad

    with monkeypatch.context() as patch:
        patch.setattr(PatchFeatureRecorder, "_record", spoilt)
        with pytest.raises(PsaqError, match=r"at step 3, not finite from blocks\.1\.attn on.*last good state is kept"):
            synthesize(vit, SHORT, checkpoint=tmp_path, progress=False)
    resumed = synthesize(vit, SHORT, checkpoint=tmp_path, progress=False)
    assert torch.equal(resumed.images, synthesize(vit, SHORT, progress=False).images)


def test_gradients_that_are_no_numbers_stop_synthesis_at_their_step(vit, tmp_path, monkeypatch):
    gradients = torch.autograd.grad

    def spoilt(*args):
        found = gradients(*args)
        return (found[0] * torch.nan,) if (tmp_path / "batch0000.safetensors").exists() else found

    with monkeypatch.context() as patch:
        patch.setattr("torch.autograd.grad", spoilt)
        with pytest.raises(PsaqError, match=r"at step 3, with finite features in every layer"):
            synthesize(vit, SHORT, checkpoint=tmp_path, progress=False)
    resumed = synthesize(vit, SHORT, checkpoint=tmp_path, progress=False)
    assert torch.equal(resumed.images, synthesize(vit, SHORT, progress=False).images)


FULL = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB of which 1 is free."


def test_a_full_gpu_names_the_options_that_need_less(small_model, tmp_path, monkeypatch, capsys):
    def full():
        raise torch.OutOfMemoryError(FULL)

    with monkeypatch.context() as patch:
        at_the_second_checkpoint(patch, full)
        with pytest.raises(SystemExit) as stopped:
            run(tmp_path, patch)
    assert stopped.value.code == 2
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("psaq:")] == [
        "psaq: error: the GPU's memory is full (CUDA out of memory. Tried to allocate 2.00 GiB); "
        "give a smaller --batch-size or --num-images, or --device cpu"
    ]
    run(tmp_path, monkeypatch)
    assert same_images(tmp_path, small_model)


def test_another_error_of_torchs_is_not_taken_for_a_full_gpu(small_model, tmp_path, monkeypatch):
    def broken():
        raise RuntimeError("mat1 and mat2 cannot be multiplied")

    at_the_second_checkpoint(monkeypatch, broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        run(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("command", "ways"),
    [
        (Quantize(), "; give a smaller --num-images, or --device cpu"),
        (Evaluate(), "; give a smaller --batch-size, or --device cpu"),
        (Tune(), "; make room on it"),
    ],
    ids=["quantize", "evaluate", "tune"],
)
def test_only_options_that_a_command_has_are_named(command, ways):
    assert _out_of_memory(torch.OutOfMemoryError(FULL), command).endswith(ways)


def test_a_clock_that_runs_backwards_harms_nothing(small_model, tmp_path, monkeypatch):
    now = iter(range(10**6, 0, -1))
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda: float(next(now)))
        run(tmp_path, patch)
    assert read_run(tmp_path)["results"]
    assert same_images(tmp_path, small_model)

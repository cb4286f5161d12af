"""The command line as a user meets it: run as a process, killed as a process."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from psaq.cli import COMMANDS, main
from psaq.images.synthetic import load_images

SMALL_RUN = ["--num-images", "2", "--image-size", "32", "--num-classes", "10", "--device", "cpu"]


def psaq(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "psaq", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    model = timm.create_model("deit_tiny_patch16_224", img_size=32, num_classes=10)
    path = tmp_path_factory.mktemp("weights") / "deit.safetensors"
    save_file(model.state_dict(), path)
    return path


def arguments(weights: Path, folder: Path, *more: str) -> list[str]:
    return ["synthesize", "--model", "deit_tiny", "--weights", str(weights), "--out", str(folder), *SMALL_RUN, *more]


def test_help_lists_every_command():
    result = psaq("--help")
    assert result.returncode == 0
    assert all(name in result.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["psaq", *name.split(), "--help"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    assert name in capsys.readouterr().out


def test_an_unknown_command_is_named():
    result = psaq("synthesise")
    assert result.returncode == 2
    assert "'synthesise'" in result.stderr


def test_doctor_says_what_it_found():
    result = psaq("doctor")
    assert result.returncode == 0, result.stderr
    assert torch.__version__.split("+")[0] in result.stdout
    assert "deit_tiny" in result.stdout


@pytest.fixture
def here(monkeypatch):
    """Run a command in this process."""

    def run(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["psaq", *words])
        main()

    return run


def test_synthesize_leaves_a_whole_run(weights, tmp_path):
    result = psaq(*arguments(weights, tmp_path / "run", "--steps", "3"))
    assert result.returncode == 0, result.stderr
    images = load_images(tmp_path / "run")
    assert len(images) == 2
    assert len(list((tmp_path / "run" / "images").glob("*.png"))) == 2
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"]["synthesis"]["steps"] == 3
    assert record["seed"] == 0
    assert record["results"].keys() == images.history.keys()
    assert "step/s" in result.stderr
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) == 1 + 3


def test_the_paper_preset_sets_the_schedule_and_other_options_still_hold(weights, tmp_path, here):
    here(*arguments(weights, tmp_path / "run", "--preset", "faithful", "--steps", "1"))
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]["synthesis"]
    assert (config["rounds"], config["steps"], config["grid"]) == (2, 1, "reference")


@pytest.mark.repeat
def test_a_run_killed_by_the_system_goes_on_to_the_same_bits(weights, tmp_path):
    steps = ("--steps", "60", "--checkpoint-every", "2")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert psaq(*arguments(weights, whole, *steps)).returncode == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "psaq", *arguments(weights, killed, *steps)], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list(killed.glob("checkpoint/batch*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "images.safetensors").exists()
    result = psaq(*arguments(weights, killed, *steps))
    assert result.returncode == 0, result.stderr
    assert torch.equal(load_images(killed).images, load_images(whole).images)
    assert not (killed / "checkpoint").exists()


def test_a_finished_run_is_not_made_again(weights, tmp_path, here, capsys):
    command = arguments(weights, tmp_path / "run", "--steps", "2")
    here(*command)
    before = (tmp_path / "run" / "run.json").read_text()
    here(*command)
    assert "already" in capsys.readouterr().out
    assert (tmp_path / "run" / "run.json").read_text() == before


def test_bad_input_is_one_message_and_code_2(weights, tmp_path):
    result = psaq(*arguments(weights, tmp_path / "run", "--num-classes", "11"))
    assert result.returncode == 2
    assert result.stderr.startswith("psaq: error:")
    assert "head.weight is (10, 192), not (11, 192)" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--model", "resnet"], "resnet"),
        (["--num-images", "0"], "num_images 0"),
        (["--image-size", "64"], "pos_embed"),
        (["--weights", "/nowhere/weights.safetensors"], "/nowhere/weights.safetensors"),
        (["--out", "/dev/null/run"], "/dev/null/run"),
        (["--device", "tpu"], "device"),
    ],
)
def test_what_is_wrong_is_named(weights, tmp_path, monkeypatch, capsys, changed, message):
    monkeypatch.setattr(sys, "argv", ["psaq", *arguments(weights, tmp_path / "run", "--steps", "2", *changed)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_folder_of_another_configuration_is_refused(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["psaq", *arguments(weights, tmp_path / "run", "--steps", "2")])
    main()
    monkeypatch.setattr(sys, "argv", ["psaq", *arguments(weights, tmp_path / "run", "--steps", "3")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "steps 2, not 3" in capsys.readouterr().err
    assert len(load_images(tmp_path / "run").history["loss"][0]) == 2

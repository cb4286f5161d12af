"""Every command and every script of the README runs as it stands there."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from psaq.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.mark.timeout(900)
def test_every_psaq_command_runs_in_the_readmes_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = [words for words in commands() if words[0] == "psaq"]
    assert len(found) >= 8
    for words in found:
        monkeypatch.setattr(sys, "argv", words)
        main()
        assert capsys.readouterr().out, f"{shlex.join(words)} prints nothing"


def test_every_make_target_exists():
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for words in commands():
        if words[0] == "make":
            subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, check=True, capture_output=True)


def test_no_other_program_is_called():
    assert {words[0] for words in commands()} == {"make", "psaq"}


@pytest.mark.parametrize("script", blocks("python"))
def test_every_script_runs(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if "my-vit" in script:
        tiny_vit().save_pretrained("my-vit")
    exec(compile(script, "README.md", "exec"), {})
    assert "agreement" in capsys.readouterr().out


def tiny_vit() -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, image_size=32, patch_size=8))


def test_every_file_named_is_there():
    for path in re.findall(r"!?\[.*?\]\((?!https?:)([^)]+)\)", README, flags=re.DOTALL):
        assert (ROOT / path).exists(), path


def test_every_command_named_in_the_text_exists():
    for name in re.findall(r"`psaq ([a-z0-9-]+)", README):
        assert any(command.split()[0] == name for command in COMMANDS)

"""Every command and every script of the README and of docs/ runs as it stands there, and what they name exists."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers

import psaq
import psaq_kernels
import psaq_plots
from psaq.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]
SITE = re.findall(r"[\w/]+\.md$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE)
"""The site's pages in its order, which is the order in which one reads and runs them, after the README."""
ELSEWHERE = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "kernels/README.md")
FILES = ("README.md", *(f"docs/{name}" for name in SITE if (ROOT / "docs" / name).exists()), *ELSEWHERE)
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in FILES}
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
EXAMPLES = [file.read_text(encoding="utf-8") for file in sorted((ROOT / "examples").glob("*.py"))]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], flags=re.MULTILINE | re.DOTALL)


def commands(page: str, program: str | None = None) -> Iterator[list[str]]:
    for line in (line for block in blocks(page, "bash") for line in block.splitlines()):
        if (words := shlex.split(line, comments=True)) and program in (None, words[0]):
            yield words


def scripts() -> dict[str, str]:
    """Each script once, but for those that are one of examples/, which its own test runs."""
    found = ((block, page) for page in PAGES for block in blocks(page, "python"))
    return {block: page for block, page in found if not any(block in example for example in EXAMPLES)}


def everywhere(pattern: str) -> set[str]:
    return {found for text in PAGES.values() for found in re.findall(pattern, text)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where all pages run their commands, and what has run: a command that several pages show runs once."""
    return tmp_path_factory.mktemp("pages"), set()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [page for page in PAGES if any(commands(page, "psaq"))])
def test_every_psaq_command_runs_in_reading_order(page, place, monkeypatch, capsys):
    folder, done = place
    monkeypatch.chdir(folder)
    until = [*PAGES][: [*PAGES].index(page) + 1]
    for words in (words for earlier in until for words in commands(earlier, "psaq")):
        command = shlex.join(words)
        if command not in done:
            monkeypatch.setattr(sys, "argv", words)
            main()
            assert capsys.readouterr().out, f"{command} prints nothing"
            done.add(command)


def test_every_make_target_exists():
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    named = {words[1] for page in PAGES for words in commands(page, "make")} | everywhere(r"`make ([a-z]+)`")
    assert named >= {"demo", "test", "docs", "fuzz"}
    subprocess.run(["make", "--dry-run", *sorted(named)], cwd=ROOT, check=True, capture_output=True)


def test_no_other_program_is_called():
    assert {words[0] for page in PAGES for words in commands(page)} == {"make", "pip", "psaq"}


@pytest.mark.parametrize("script", scripts())
def test_every_script_runs(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if "my-vit" in script:
        tiny_vit().save_pretrained("my-vit")
    exec(compile(script, scripts()[script], "exec"), {})
    assert "agreement" in capsys.readouterr().out


def tiny_vit() -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, image_size=32, patch_size=8))


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file(page):
    for path in re.findall(r"\]\((?![a-z]+:|#)([^)#]+)", PAGES[page]):
        assert ((ROOT / page).parent / path).exists(), path


def test_every_path_in_the_text_is_there():
    for path in everywhere(r"`((?:psaq|kernels|plots|tests|docs|examples)/[\w./]*)"):
        assert (ROOT / path).exists(), path


def test_every_name_in_the_text_exists():
    for name in everywhere(r"`psaq ([a-z0-9-]+)"):
        assert any(command.split()[0] == name for command in COMMANDS), name
    for name in everywhere(r"python -m\s+(psaq[\w.]+)"):
        assert importlib.util.find_spec(name), name
    for name in everywhere(r"\bpsaq\.(\w+)\("):
        assert hasattr(psaq, name), name
    for extra in everywhere(r"(?:psaq|\.)\[(\w+)\]"):
        assert re.search(rf"^{extra} = \[", PROJECT, flags=re.MULTILINE), extra


def test_every_identifier_that_contributors_are_told_of_exists():
    folders = ("psaq", "kernels", "plots", "tests")
    sources = "\n".join(file.read_text(encoding="utf-8") for name in folders for file in (ROOT / name).rglob("*.py"))
    named = set(re.findall(r"`(?:\w+\.)*(\w+)`", PAGES["CONTRIBUTING.md"]))
    assert len(named) > 40
    assert named <= set(re.findall(r"\w+", sources))


def test_every_page_is_in_the_site_and_the_readme_is_short():
    there = {str(file.relative_to(ROOT / "docs")) for file in (ROOT / "docs").rglob("*.md")}
    assert there <= {*SITE}
    assert len(PAGES["README.md"].splitlines()) <= 120


def test_the_site_builds_without_a_warning(tmp_path):
    for module in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(module, reason=f"{module} is not installed; pip install '.[docs]'")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    for package in (psaq, psaq_kernels, psaq_plots):
        page = (tmp_path / "api" / f"{package.__name__}.html").read_text(encoding="utf-8")
        missing = [name for name in package.__all__ if f'id="{package.__name__}.{name}"' not in page]
        assert not missing, f"without a docstring: {missing}"
    assert (tmp_path / "examples" / "fig3.py").exists()
    assert "fonts.googleapis" not in (tmp_path / "index.html").read_text(encoding="utf-8"), "a font is fetched"

"""What is imported when: help waits for no torch, ``import psaq`` for none of the libraries that a call may need."""

import ast
import json
import pickle
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from launch import environment

import psaq
from psaq.cli import COMMANDS

HEAVY = {"torch", "torchvision", "timm", "transformers", "matplotlib", "numpy", "scipy", "onnx", "pandas", "tqdm"}

EVERY_HELP = """
import contextlib, io, json, sys
from psaq import cli

helps, loaded = {}, {}
for arguments in [["--help"], *([*name.split(), "--help"] for name in cli.COMMANDS)]:
    sys.argv = ["psaq", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        cli.main()
    helps[" ".join(arguments)] = said.getvalue()
    loaded[" ".join(arguments)] = sorted(sys.modules)
print(json.dumps({"helps": helps, "loaded": loaded}))
"""


def python(script: str) -> dict:
    """What a script prints as JSON, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_help_waits_for_nothing_heavy():
    found = python(EVERY_HELP)
    assert len(found["helps"]) == 1 + len(COMMANDS)
    for arguments, said in found["helps"].items():
        assert "usage: psaq" in said, arguments
        assert not HEAVY & set(found["loaded"][arguments]), arguments


@pytest.mark.parametrize("module", ["plot_density", "tune"])
def test_modules_that_run_by_themselves_help_as_quickly(module):
    command = [sys.executable, "-X", "importtime", "-m", f"psaq.{module}", "--help"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
    assert not HEAVY & {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


def test_the_package_is_imported_before_what_it_needs():
    assert not HEAVY & set(python("import json, sys, psaq; print(json.dumps(sorted(sys.modules)))"))


def test_every_public_name_is_there():
    for name in psaq.__all__:
        scope: dict = {}
        exec(f"from psaq import {name}", scope)
        assert scope[name] is getattr(psaq, name)
        assert scope[name].__doc__, name
        assert name in dir(psaq)
        if isinstance(scope[name], type) or callable(scope[name]):
            assert pickle.loads(pickle.dumps(scope[name])) is scope[name]


def test_public_names_are_declared_alike_for_python_and_for_type_checkers():
    blocks = [node for node in ast.parse(Path(psaq.__file__).read_text()).body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    declared = {node.module: tuple(alias.name for alias in node.names) for node in imports}
    assert declared == psaq._HOMES
    assert sorted(name for names in declared.values() for name in names) == sorted(psaq.__all__)


def test_no_public_name_is_a_modules():
    """Which would stand in its place as soon as the module is imported."""
    modules = {path.stem for path in Path(psaq.__file__).parent.iterdir()}
    assert not modules & set(psaq.__all__)
    assert import_module("psaq.plot_density").PlotDensity


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'psaq' has no attribute 'quantise'"):
        psaq.quantise  # noqa: B018

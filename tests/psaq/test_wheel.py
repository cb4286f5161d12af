"""The wheel alone, in an environment of its own and away from the checkout: whole, and good for the demo."""

import os
import shutil
import site
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {Path(package).name: ROOT / package for package in ("psaq", "kernels/psaq_kernels", "plots/psaq_plots")}
SHORT = ["--num-images", "2", "--steps", "1", "--scenes", "8", "--precisions", "W8A8", "--device", "cpu"]


def run(command: Sequence[str | Path], folder: Path) -> str:
    """What a program prints that finds no package but those of its own environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for package in PACKAGES.values():
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(package, folder / package.relative_to(ROOT), ignore=ignored)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    run([*pip, "--wheel-dir", "dist", "."], folder)
    return next((folder / "dist").glob("psaq-*.whl"))


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory) -> Path:
    """Of an environment that holds the wheel, and borrows what the wheel depends on from this one."""
    folder = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", "--without-pip", "."], folder)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin/python"]
    run([*pip, "install", "--no-deps", "--no-index", "--quiet", wheel], folder)
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "borrowed.pth").write_text("\n".join(site.getsitepackages()), encoding="utf-8")
    return folder / "bin"


def test_every_file_of_the_packages_is_in_it(wheel):
    there = set(zipfile.ZipFile(wheel).namelist())
    for name, package in PACKAGES.items():
        files = [path.relative_to(package) for path in package.rglob("*") if path.is_file()]
        shipped = {f"{name}/{path.as_posix()}" for path in files if not {"__pycache__", "results"} & set(path.parts)}
        assert shipped <= there, shipped - there


def test_what_runs_is_the_wheels(programs, tmp_path):
    for name in PACKAGES:
        script = f"from importlib.util import find_spec; print(find_spec({name!r}).origin)"
        assert Path(run([programs / "python", "-c", script], tmp_path).strip()).is_relative_to(programs.parent)


def test_the_demo_runs_from_any_folder(programs, tmp_path):
    assert "usage: psaq demo" in run([programs / "psaq", "demo", "--help"], tmp_path)
    said = run([programs / "psaq", "demo", *SHORT], tmp_path)
    assert "micro_vit" in said
    assert (tmp_path / "runs/demo/report.html").exists()

"""Every script of examples/ runs as it stands, and is short enough to be read at a glance."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
PRINTED = {"backbone": "SQNR", "fig3": "generated: ", "own_model": "agreement", "table1_row": "PSAQ "}


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_it_runs(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="__main__")
    assert PRINTED[script.stem] in capsys.readouterr().out
    if script.stem == "fig3":
        assert (tmp_path / "fig3.png").stat().st_size > 10_000


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_it_is_short(script):
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 40

"""``psaq report``: the page of a run's folder, through the command line."""

import json

import pytest

from psaq.cli import run_command
from psaq.commands.report import ReportRun


def test_page_is_written_and_its_path_printed(tmp_path, capsys):
    (tmp_path / "run.json").write_text(json.dumps({"command": "quantize", "config": {"precision": "W4A8"}}))
    run_command(ReportRun, [str(tmp_path)])
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert "W4A8" in (tmp_path / "report.html").read_text()


def test_a_folder_without_a_run_is_an_error_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_command(ReportRun, [str(tmp_path)])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"psaq: error: {tmp_path}: holds no run.json; name the folder of a run\n"
    assert list(tmp_path.iterdir()) == []

"""``psaq report``: the page of a run's folder, through the command line."""

import pytest

from psaq.commands.options import ModelOptions
from psaq.commands.quantize import Quantize
from psaq.commands.report import ReportRun
from psaq.commands.synthesize import Synthesize
from psaq.program import run_command
from psaq.runs import RunFolder
from psaq.synthesis import SynthesisConfig


def test_page_is_written_and_its_path_printed(tmp_path, capsys):
    RunFolder(tmp_path, "quantize", {"precision": "W4A8"})
    run_command(ReportRun, [str(tmp_path)])
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert "W4A8" in (tmp_path / "report.html").read_text()


def test_a_folder_without_a_run_is_an_error_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_command(ReportRun, [str(tmp_path)])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"psaq: error: {tmp_path}: holds no run.json; name the folder of a run\n"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_model(monkeypatch, vit):
    monkeypatch.setattr(ModelOptions, "load", lambda _: vit)


def test_a_synthesis_ends_with_its_page(small_model, tmp_path):
    Synthesize(synthesis=SynthesisConfig(num_images=2, steps=3), out=tmp_path).run()
    page = (tmp_path / "report.html").read_text()
    for title in ("Synthesised images", "From noise to image", "Patch-similarity density", "Losses"):
        assert f'alt="{title}. ' in page
    assert "not finished" not in page


def test_a_quantisation_ends_with_its_page(small_model, tmp_path):
    Quantize(gaussian=True, num_images=2, precision="W4A8", out=tmp_path).run()
    page = (tmp_path / "report.html").read_text()
    assert 'alt="Quantisation error by layer. ' in page
    assert "float32" in page
    assert "quantised" in page

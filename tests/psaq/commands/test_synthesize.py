"""``psaq synthesize``: a run is finished when all of it is there, and goes on until then."""

import json

import pytest

from psaq.commands.options import ModelOptions
from psaq.commands.synthesize import Synthesize
from psaq.commands.work import synthesize
from psaq.synthesis import SynthesisConfig


@pytest.fixture(autouse=True)
def small_model(monkeypatch, vit):
    monkeypatch.setattr(ModelOptions, "load", lambda _: vit)


@pytest.mark.parametrize("killed_in", ["draw_run", "draw_densities", "write_report"])
def test_what_a_kill_left_out_after_the_images_is_made(tmp_path, monkeypatch, capsys, killed_in):
    command = Synthesize(synthesis=SynthesisConfig(num_images=2, steps=3), out=tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(synthesize, killed_in, lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            command.run()
    images = (tmp_path / "images.safetensors").stat().st_mtime_ns
    command.run()
    assert {"samples.png", "density.png", "report.html"} <= {file.name for file in tmp_path.iterdir()}
    assert json.loads((tmp_path / "run.json").read_text())["results"].keys() >= {"loss", "entropy"}
    assert (tmp_path / "images.safetensors").stat().st_mtime_ns == images
    capsys.readouterr()
    command.run()
    assert "2 images are already in" in capsys.readouterr().out

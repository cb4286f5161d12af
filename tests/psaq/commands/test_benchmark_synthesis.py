"""The synthesis benchmark: what it times is what it says, and its table is whole."""

import csv

import pytest
import timm
import torch
from safetensors.torch import save_file

from psaq.benchmarks.synthesis import EAGER, MODEL, STEP
from psaq.commands.benchmark_synthesis import BenchmarkSynthesis
from psaq.commands.options import ModelOptions
from psaq.errors import PsaqError


@pytest.fixture
def options(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("deit_tiny_patch16_224", img_size=32, num_classes=10)
    save_file(model.state_dict(), tmp_path / "deit.safetensors")
    return ModelOptions("deit_tiny", tmp_path / "deit.safetensors", num_classes=10, image_size=32, device="cpu")


def test_the_table_has_every_variant_and_its_ratio(options, tmp_path, capsys):
    BenchmarkSynthesis(options, images=(2,), repeats=1, out=tmp_path / "out.csv").run()
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["what"] for row in rows] == [MODEL, STEP, EAGER]
    assert float(rows[0]["time_ratio"]) == 1.0
    for row in rows:
        assert float(row["time_ratio"]) == pytest.approx(float(row["ms"]) / float(rows[0]["ms"]))
        assert torch.__version__.startswith(row["torch"])
        assert row["device"]
    assert STEP in capsys.readouterr().out


def test_the_device_is_the_one_asked_for(options, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("psaq.commands.work.benchmark_synthesis.device_name", lambda device: f"named {device}")
    BenchmarkSynthesis(options, images=(1,), repeats=1, eager=False, memory=False, out=tmp_path / "out.csv").run()
    assert "on named cpu" in capsys.readouterr().out
    assert ",named cpu," in (tmp_path / "out.csv").read_text()


@pytest.mark.parametrize("name", ["micro_segmenter", "micro_detector"])
def test_boxes_and_pixels_are_timed_without_a_class_loss(name, capsys):
    BenchmarkSynthesis(ModelOptions(name, device="cpu"), images=(1,), repeats=1, memory=False).run()
    assert EAGER in capsys.readouterr().out


def test_nothing_to_time_is_refused():
    with pytest.raises(PsaqError, match="images"):
        BenchmarkSynthesis(images=())
    with pytest.raises(PsaqError, match="repeats"):
        BenchmarkSynthesis(repeats=0)

"""The table of speeds: every form of a model in every runtime, once for each processor."""

from dataclasses import replace

import pytest
import torch

from psaq.experiments import cpu_speed
from psaq.experiments.cpu_speed import CpuSpeed, Row
from psaq.experiments.rows import read_rows
from psaq.quantization.deployment import runtimes

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")


@pytest.fixture
def options(vit, tmp_path, monkeypatch):
    vit.pretrained_cfg = {**vit.pretrained_cfg, "input_size": (3, 32, 32)}
    monkeypatch.setattr(cpu_speed.timm, "create_model", lambda _: vit)
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    # NNCF and torchao are no dependencies, not even of the tests.
    monkeypatch.setattr(cpu_speed, "nncf_file", lambda _model, _noise, folder: folder / "openvino-linear.onnx")
    monkeypatch.setattr(cpu_speed, "_torchao", lambda model: model)
    monkeypatch.setattr(cpu_speed, "_versions", lambda: "of today")
    monkeypatch.setattr(cpu_speed, "_TIMED", 1)
    monkeypatch.setattr(runtimes, "_SPINNING", 0.0)
    return CpuSpeed(models=("small",), precisions=("W8A8",), images=(1, 2), out=tmp_path / "table.csv")


def test_every_form_is_timed_at_every_batch_once(options, monkeypatch):
    options.run()
    rows = read_rows(options.out, Row)
    assert [row.images for row in rows] == [1] * 20 + [2] * 20
    assert len({row.variant for row in rows}) == 20
    by_name = {row.variant: row for row in rows if row.images == 2}
    assert by_name["float32"].speedup == 1
    for row in by_name.values():
        assert row.speedup == pytest.approx(by_name["float32"].milliseconds / row.milliseconds, rel=1e-2)
    assert by_name["openvino, float32"].integer_products.startswith("0 of")
    assert by_name["openvino, its own file, linear"].integer_products == "10 of 10"
    assert by_name["onnxruntime, its own file, matmul"].integer_products == "12 of 14"
    asked: list[list[int]] = []
    monkeypatch.setattr(cpu_speed, "_tables", lambda _name, _precision, counts, _folder: asked.append(counts) or [])
    options.run()
    assert (asked, len(read_rows(options.out, Row))) == ([], 40)
    monkeypatch.setattr(cpu_speed, "_versions", lambda: "of tomorrow")
    options.run()
    assert asked == [[1, 2]]


def test_weights_of_4_bits_are_multiplied_in_integers(options):
    replace(options, precisions=("W4A8",), images=(1,)).run()
    by_name = {row.variant: row for row in read_rows(options.out, Row)}
    assert {row.precision for row in by_name.values()} == {"W4A8"}
    assert by_name["openvino, file for any runtime"].integer_products == "10 of 10"
    assert by_name["onnxruntime, file for any runtime"].integer_products == "10 of 14"

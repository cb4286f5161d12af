"""The table of runtimes: every file in every runtime, once, with the figures of evaluate."""

import math

import pytest
import torch
from noise_picture import noise_picture

from psaq.evaluation import evaluate
from psaq.experiments import runtimes
from psaq.experiments.rows import read_rows
from psaq.experiments.runtimes import NNCF_NOISE, NNCF_REAL, PSAQ, SIMULATION, Row, Runtimes
from psaq.images.imagenet import imagenet
from psaq.images.synthetic import SyntheticImages, load_images
from psaq.models.zoo import data_config
from psaq.quantization.deployment.runtimes import ONNXRUNTIME, installed, session
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def options(vit, tmp_path, monkeypatch):
    monkeypatch.setattr(runtimes, "load_model", lambda *_: vit)
    if "openvino" not in installed():
        monkeypatch.setattr(runtimes, "session", lambda path, _: session(path, ONNXRUNTIME))
    # NNCF itself takes minutes to load and to quantise: here it leaves the model as it is.
    monkeypatch.setattr(runtimes, "_nncf", lambda model, images, _: ("OpenVINO, its own file", model))
    for folder, count in (("val", 10), ("train", 3)):
        for index in range(count):
            (tmp_path / folder / f"class{index}").mkdir(parents=True)
            noise = noise_picture((40, 40), 30 + 10 * index)
            noise.save(tmp_path / folder / f"class{index}" / "a.png")
    config, noise = data_config(vit), torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    SyntheticImages(noise, torch.arange(4), config.mean, config.std).save(tmp_path / "seed0")
    return Runtimes(
        tmp_path / "unused",
        tmp_path / "val",
        tmp_path / "train",
        str(tmp_path / "seed{seed}"),
        precisions=("W4A8",),
        seeds=(0,),
        out=tmp_path / "table.csv",
    )


def test_every_runtime_is_measured_once(options, vit, monkeypatch):
    vit.pretrained_cfg = {**vit.pretrained_cfg, "input_size": (3, 32, 32)}
    options.run()
    rows = read_rows(options.out, Row)
    assert [row.quantiser for row in rows] == [PSAQ] * 12 + [NNCF_REAL, NNCF_NOISE]
    assert [row.precision for row in rows] == ["W4A8"] * 12 + ["W8A8"] * 2
    assert [row.scope for row in rows[:12]] == ["matmul"] * 6 + ["linear"] * 6
    qmodel = quantize(vit, load_images(options.images.format(seed=0)), Recipe.accurate(4, 8, scope="matmul"))
    expected = evaluate(qmodel, imagenet(options.val, vit, options.crop_pct), vit)
    assert (rows[0].where, rows[0].top1, rows[0].fp_agreement, rows[0].n) == (
        SIMULATION,
        expected.top1,
        expected.agreement,
        10,
    )
    assert rows[0].simulation_agreement == 100
    assert all(math.isnan(row.simulation_agreement) and row.fp_agreement == 100 for row in rows[-2:])
    monkeypatch.setattr(runtimes, "_psaqs", lambda *_: pytest.fail("measured again"))
    options.run()
    assert len(read_rows(options.out, Row)) == len(rows)

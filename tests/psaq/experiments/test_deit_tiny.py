"""The DeiT-Tiny table: every cell once, also when it was interrupted."""

from dataclasses import replace

import pytest
import torch
from noise_picture import noise_picture

from psaq.errors import PsaqError
from psaq.evaluation import evaluate
from psaq.experiments import deit_tiny
from psaq.experiments.deit_tiny import Bench, DeitTiny, Result
from psaq.experiments.rows import read_rows
from psaq.images.batches import gaussian_images
from psaq.images.imagenet import imagenet
from psaq.images.synthetic import SyntheticImages
from psaq.models.zoo import data_config
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe


@pytest.fixture
def options(vit, tmp_path, monkeypatch):
    monkeypatch.setattr(deit_tiny, "load_model", lambda *_: vit)
    for index in range(10):
        folder = tmp_path / "val" / f"class{index}"
        folder.mkdir(parents=True)
        for number in range(4):
            noise_picture((40, 40), 30 + 10 * index).save(folder / f"{number}.png")
    for seed in (0, 1):
        config, noise = data_config(vit), torch.Generator().manual_seed(seed)
        images = SyntheticImages(torch.randn(4, 3, 32, 32, generator=noise), torch.arange(4), config.mean, config.std)
        images.save(tmp_path / f"seed{seed}")
    return DeitTiny(
        weights=tmp_path / "unused",
        val=tmp_path / "val",
        train=tmp_path / "val",
        seeds=(0, 1),
        images=(tmp_path / "seed0", tmp_path / "seed1"),
        roundings=2,
        precisions=("W4A4",),
        runs=tmp_path / "runs",
        out=tmp_path / "table.csv",
    )


def test_every_cell_is_measured_as_evaluate_does(options, vit, capsys, monkeypatch):
    monkeypatch.setattr(deit_tiny, "LAST_PLACE", 1e-2)  # two blocks amplify little
    options.run()
    results = read_rows(options.out, Result)
    models = [("Standard", 0), ("Gaussian", 0), ("Gaussian", 1), ("PSAQ", 0), ("PSAQ", 1)]
    assert [(result.method, result.seed, result.rounding) for result in results] == [
        (*model, rounding) for model in models for rounding in (0, 1)
    ]
    qmodel = quantize(vit, gaussian_images(vit, 32, 1), Recipe.paper(4, 4, faithful=True))
    expected = evaluate(qmodel, imagenet(options.val, vit, options.crop_pct), vit)
    noise = results[4]
    assert (noise.top1, noise.agreement, noise.n) == (expected.top1, expected.agreement, 40)
    assert noise.logit_sqnr == pytest.approx(expected.logit_sqnr, abs=0.01)
    assert any(replace(own, rounding=1) != other for own, other in zip(results[::2], results[1::2], strict=True))
    assert capsys.readouterr().out.count("W4A4") == 10


def test_what_was_measured_is_not_measured_again(options, monkeypatch):
    options.run()
    whole = options.out.read_text()
    options.out.unlink()
    (options.runs / "results.csv").write_text("".join(whole.splitlines(keepends=True)[:3]))
    measured = []
    measure = Bench.measure
    monkeypatch.setattr(Bench, "measure", lambda bench, cell: measured.append(cell) or measure(bench, cell))
    options.run()
    assert len(measured) == 8
    assert options.out.read_text() == whole


def test_cells_of_another_configuration_are_not_mixed_in(options):
    options.run()
    with pytest.raises(PsaqError, match=r"crop_pct 0\.987, not 0\.875"):
        replace(options, crop_pct=0.875).run()


def test_no_rounding_at_all_is_refused(options):
    with pytest.raises(PsaqError, match="roundings 0: must be at least 1"):
        replace(options, roundings=0).run()


def test_a_run_too_few_is_named(options, tmp_path):
    with pytest.raises(PsaqError, match="1 runs for 3 seeds"):
        DeitTiny(weights=tmp_path, val=tmp_path, train=tmp_path, images=(tmp_path,)).run()

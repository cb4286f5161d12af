"""``psaq export``: the file, the check in onnxruntime, and one message for wrong input."""

from pathlib import Path

import pytest
import torch

from psaq import PsaqError, Recipe, gaussian_images, load_model, quantize, save
from psaq.commands.export import Export, check_onnx
from psaq.quantization.deployment.onnx_graph import export_onnx

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def qmodel() -> torch.nn.Module:
    model = load_model("micro_vit")
    return quantize(model, gaussian_images(model, 4), Recipe.paper(4, 8, scope="linear"))


def test_the_command_writes_checks_and_times(qmodel: torch.nn.Module, tmp_path: Path, capsys) -> None:
    save(qmodel, tmp_path / "model.safetensors")
    Export(tmp_path, tmp_path / "model.onnx", num_images=5, batch_size=2, repeats=1).run()
    assert (tmp_path / "model.onnx").stat().st_size < 0.4 * 4 * sum(p.numel() for p in qmodel.parameters())
    said = capsys.readouterr().out
    assert "of 5 images" in said
    assert "2 images on" in said
    assert "times as fast" in said


def test_the_check_compares_with_the_model_it_is_given(qmodel: torch.nn.Module, tmp_path: Path) -> None:
    export_onnx(qmodel, tmp_path / "q.onnx")
    images = gaussian_images(qmodel, 8, seed=3)
    same = check_onnx(tmp_path / "q.onnx", qmodel, images, batch_size=4, repeats=1)
    assert same.agreement >= 75
    assert same.logit_sqnr > 15
    assert same.images == 8
    with torch.no_grad():
        qmodel.head.weight.neg_()
    assert check_onnx(tmp_path / "q.onnx", qmodel, images, batch_size=4, repeats=1).logit_sqnr < 0


def test_numbers_below_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PsaqError, match="--batch-size"):
        Export(tmp_path, tmp_path / "model.onnx", batch_size=0)


def test_absent_pictures_are_named_before_anything_is_written(qmodel: torch.nn.Module, tmp_path: Path) -> None:
    save(qmodel, tmp_path / "model.safetensors")
    with pytest.raises(PsaqError, match="absent"):
        Export(tmp_path, tmp_path / "model.onnx", images=tmp_path / "absent").run()
    assert not (tmp_path / "model.onnx").exists()


def test_an_absent_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(PsaqError, match=r"absent\.safetensors"):
        Export(tmp_path / "absent.safetensors", tmp_path / "model.onnx").run()

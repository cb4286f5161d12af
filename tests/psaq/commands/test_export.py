"""``psaq export``: the file, the check in onnxruntime, and one message for wrong input."""

from pathlib import Path
from typing import Any

import pytest
import torch

from psaq import PsaqError, Recipe, SynthesisConfig, gaussian_images, load_model, quantize, save, synthesize
from psaq.commands.export import Export
from psaq.commands.work import export as export_module

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
    assert "products in integers" in said


def test_numbers_below_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PsaqError, match="--batch-size"):
        Export(tmp_path, tmp_path / "model.onnx", batch_size=0)


def test_absent_pictures_are_named_before_anything_is_written(qmodel: torch.nn.Module, tmp_path: Path) -> None:
    save(qmodel, tmp_path / "model.safetensors")
    with pytest.raises(PsaqError, match="absent"):
        Export(tmp_path, tmp_path / "model.onnx", images=tmp_path / "absent").run()
    assert not (tmp_path / "model.onnx").exists()


def test_it_is_checked_on_the_images_of_a_synthesis(qmodel: torch.nn.Module, tmp_path: Path, monkeypatch: Any) -> None:
    save(qmodel, tmp_path / "model.safetensors")
    made = synthesize(load_model("micro_vit"), SynthesisConfig(num_images=3, steps=1))
    made.save(tmp_path / "run")
    (tmp_path / "run" / "density.png").write_bytes(next((tmp_path / "run" / "images").iterdir()).read_bytes())
    checked: list[torch.Tensor] = []
    check = export_module.check_onnx

    def noted(file: Path, model: torch.nn.Module, images: torch.Tensor, *how: Any, **more: Any) -> Any:
        checked.append(images)
        return check(file, model, images, *how, **more)

    monkeypatch.setattr(export_module, "check_onnx", noted)
    monkeypatch.setattr(export_module, "installed", lambda: ["onnxruntime"])
    Export(tmp_path, tmp_path / "model.onnx", images=tmp_path / "run", num_images=2, batch_size=2, repeats=1).run()
    torch.testing.assert_close(checked[0], made.images[:2])


def test_a_crop_of_noise_is_refused(qmodel: torch.nn.Module, tmp_path: Path) -> None:
    save(qmodel, tmp_path / "model.safetensors")
    with pytest.raises(PsaqError, match="--crop-pct: does nothing"):
        Export(tmp_path, tmp_path / "model.onnx", crop_pct=0.9).run()


def test_an_absent_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(PsaqError, match=r"absent\.safetensors"):
        Export(tmp_path / "absent.safetensors", tmp_path / "model.onnx").run()


@pytest.mark.parametrize(("bits", "largest", "word"), [(8, 64, True), (8, 128, False), (7, 64, False)])
def test_a_file_whose_sums_overflow_comes_with_a_word(
    bits: int, largest: int, word: bool, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model("micro_vit")
    qmodel = quantize(model, gaussian_images(model, 4), Recipe.paper(bits, 8, scope="linear"))
    save(qmodel, tmp_path / "model.safetensors")
    monkeypatch.setattr(export_module, "installed", lambda: ["onnxruntime"])
    monkeypatch.setattr(export_module, "largest_exact_weight", lambda: largest)
    Export(tmp_path, tmp_path / "q.onnx", runtime="onnxruntime", num_images=2, batch_size=2, repeats=1).run()
    assert ("sums overflow in onnxruntime here" in capsys.readouterr().out) == word


@pytest.mark.parametrize(
    ("scope", "activations", "runtime", "word"),
    [("all", 8, "onnxruntime", True), ("all", 4, "onnxruntime", False), ("matmul", 8, "onnxruntime", False)],
)
def test_sums_in_integers_come_with_a_word(
    scope: Any, activations: int, runtime: Any, word: bool, tmp_path: Path, capsys
) -> None:
    model = load_model("micro_vit")
    recipe = Recipe.paper(8, activations, scope=scope)
    save(quantize(model, gaussian_images(model, 4), recipe), tmp_path / "model.safetensors")
    Export(tmp_path, tmp_path / "q.onnx", runtime=runtime, num_images=2, batch_size=2, repeats=1).run()
    assert ("sums are added in integers" in capsys.readouterr().out) == word


def test_products_of_uneven_levels_are_named(tmp_path: Path, capsys) -> None:
    model = load_model("micro_vit")
    save(
        quantize(model, gaussian_images(model, 4), Recipe.accurate(8, 8, flat_copies=0)), tmp_path / "model.safetensors"
    )
    Export(tmp_path, tmp_path / "q.onnx", num_images=2, batch_size=2, repeats=1).run()
    assert "in float, for uneven steps of their levels: products of 12 points" in capsys.readouterr().out
    Export(tmp_path, tmp_path / "q.onnx", "openvino", num_images=2, batch_size=2, repeats=1).run()
    said = capsys.readouterr().out
    assert "in float, for uneven steps: 6 softmax outputs and the values that they weigh" in said
    assert "256 even levels in place of uneven ones: 6 GELU outputs" in said


def test_a_file_for_a_runtime_that_is_not_here_is_written_all_the_same(
    qmodel: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    save(qmodel, tmp_path / "model.safetensors")
    monkeypatch.setattr(export_module, "installed", lambda: ["onnxruntime"])
    Export(tmp_path, tmp_path / "q.onnx", "openvino").run()
    assert (tmp_path / "q.onnx").exists()
    assert "not run here: openvino is not installed" in capsys.readouterr().out


def test_where_no_runtime_is_the_file_is_written_all_the_same(
    qmodel: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    save(qmodel, tmp_path / "model.safetensors")
    monkeypatch.setattr(export_module, "installed", list)
    Export(tmp_path, tmp_path / "q.onnx").run()
    assert (tmp_path / "q.onnx").exists()
    assert "not run here: neither onnxruntime nor openvino is installed" in capsys.readouterr().out

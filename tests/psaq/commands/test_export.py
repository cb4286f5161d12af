"""``psaq export``: the file, the check in onnxruntime, and one message for wrong input."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launch import environment

from psaq import PsaqError, Recipe, gaussian_images, load_model, quantize, save
from psaq.commands.export import Export
from psaq.commands.runtimes import installed, products, session
from psaq.commands.work import export as export_module
from psaq.commands.work.export import check_onnx
from psaq.quantization.deployment.onnx_graph import export_float_onnx, export_onnx
from psaq.quantization.model.points import live_points

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


def test_what_runs_in_integers_is_counted(tmp_path: Path) -> None:
    model = load_model("micro_vit")
    qmodel = quantize(model, gaussian_images(model, 4), Recipe.paper(7, 8, scope="linear"))
    layers = sum(name.endswith("weight_quantizer") for name in live_points(qmodel))
    images = gaussian_images(qmodel, 2)
    for runtime in installed():
        export_onnx(qmodel, tmp_path / "q.onnx", runtime=runtime)
        export_float_onnx(qmodel, tmp_path / "float.onnx")
        found = products(tmp_path / "q.onnx", runtime, images)
        assert found.integer == layers
        assert found.total == products(tmp_path / "float.onnx", runtime, images).total
        assert products(tmp_path / "float.onnx", runtime, images).integer == 0


def test_a_file_for_a_runtime_comes_with_a_word(
    qmodel: torch.nn.Module, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(qmodel, tmp_path / "model.safetensors")
    monkeypatch.setattr(export_module, "installed", lambda: ["onnxruntime"])
    for largest, word in ((64, True), (128, False)):
        monkeypatch.setattr(export_module, "largest_exact_weight", lambda largest=largest: largest)
        Export(tmp_path, tmp_path / "q.onnx", runtime="onnxruntime", num_images=2, batch_size=2, repeats=1).run()
        assert ("sums overflow in onnxruntime here" in capsys.readouterr().out) == word


def test_products_of_uneven_levels_are_named(tmp_path: Path, capsys) -> None:
    model = load_model("micro_vit")
    save(
        quantize(model, gaussian_images(model, 4), Recipe.accurate(8, 8, flat_copies=0)), tmp_path / "model.safetensors"
    )
    Export(tmp_path, tmp_path / "q.onnx", num_images=2, batch_size=2, repeats=1).run()
    assert "in float, for uneven steps of their levels" in capsys.readouterr().out


def test_a_runtime_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(PsaqError, match=r"openvino is not installed; run pip install .psaq\[openvino\]"):
        session(tmp_path / "q.onnx", "openvino")


SIGNALLED = """
import gc, signal, subprocess, sys
from pathlib import Path
from launch import environment
from psaq.commands.runtimes import session

one, other = (session(Path(sys.argv[1]), "openvino") for _ in range(2))
del one
gc.collect()
del other
gc.collect()
signal.signal(signal.SIGCHLD, lambda *_: print("told"))
subprocess.run([sys.executable, "--version"], check=True, capture_output=True)
"""


def test_a_signal_after_openvino_ends_no_process(qmodel: torch.nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    export_onnx(qmodel, tmp_path / "model.onnx", runtime="openvino")
    command = [sys.executable, "-c", SIGNALLED, str(tmp_path / "model.onnx")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "told"), done.stderr

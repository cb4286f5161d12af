"""Exported models where they run, beside the fake-quantised one."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from launch import environment
from repeats import also

from psaq import PsaqError, Recipe, gaussian_images, load_model, quantize
from psaq.quantization.deployment import onnx_part
from psaq.quantization.deployment.onnx_graph import export_float_onnx, export_onnx
from psaq.quantization.deployment.runtimes import installed, products, session, settle
from psaq.quantization.deployment.verdict import check_onnx
from psaq.quantization.model.points import live_points
from psaq.tasks.classification import logit_sqnr

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def qmodel() -> torch.nn.Module:
    model = load_model("micro_vit")
    return quantize(model, gaussian_images(model, 4), Recipe.paper(4, 8, scope="linear"))


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


def test_a_model_too_large_in_float32_is_checked_without_it(qmodel, tmp_path, monkeypatch) -> None:
    export_onnx(qmodel, tmp_path / "q.onnx")
    size = 4 * sum(parameter.numel() for parameter in qmodel.parameters())
    monkeypatch.setattr(onnx_part, "MOST_BYTES", size - 1)
    verdict = check_onnx(tmp_path / "q.onnx", qmodel, gaussian_images(qmodel, 4), batch_size=4, repeats=1)
    assert verdict.float_milliseconds is None
    assert verdict.logit_sqnr > 15
    export_onnx(qmodel, tmp_path / "again.onnx")  # its integers take less
    with pytest.raises(PsaqError, match=r"GiB in the file, and an ONNX file holds 2; .* a part: .*blocks"):
        export_float_onnx(qmodel, tmp_path / "float.onnx")


@pytest.mark.parametrize("bits", [7, 4])
def test_what_runs_in_integers_is_counted(bits: int, tmp_path: Path) -> None:
    model = load_model("micro_vit")
    qmodel = quantize(model, gaussian_images(model, 4), Recipe.paper(bits, 8, scope="linear"))
    layers = sum(name.endswith("weight_quantizer") for name in live_points(qmodel))
    images = gaussian_images(qmodel, 2)
    for runtime in installed():
        export_onnx(qmodel, tmp_path / "q.onnx", runtime=runtime)
        export_float_onnx(qmodel, tmp_path / "float.onnx")
        found = products(tmp_path / "q.onnx", runtime, images)
        assert found.integer == layers
        assert found.total == products(tmp_path / "float.onnx", runtime, images).total
        assert products(tmp_path / "float.onnx", runtime, images).integer == 0


def test_the_default_file_of_few_bits_runs_in_integers_everywhere(qmodel: torch.nn.Module, tmp_path: Path) -> None:
    export_onnx(qmodel, tmp_path / "q.onnx")
    layers = sum(name.endswith("weight_quantizer") for name in live_points(qmodel))
    found = [products(tmp_path / "q.onnx", runtime, gaussian_images(qmodel, 2)).integer for runtime in installed()]
    assert found == [layers] * len(installed())


@torch.no_grad()
@pytest.mark.parametrize("name", ["micro_vit", "micro_swin"])
@pytest.mark.parametrize("precision", [(6, 6), *also((4, 4))], ids=str)
def test_openvino_takes_a_file_whose_sums_are_quantised(name: str, precision: tuple[int, int], tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    model = load_model(name)
    qmodel = quantize(model, gaussian_images(model, 4), Recipe.paper(*precision, scope="all"))
    export_onnx(qmodel, tmp_path / "q.onnx")
    images = gaussian_images(model, 8, seed=3)
    found, expected = session(tmp_path / "q.onnx", "openvino")(images), qmodel(images)
    assert logit_sqnr(found, expected) > logit_sqnr(model(images), expected) + 3, "it rounds sums once more"


def test_onnxruntime_multiplies_queries_with_keys_in_integers(tmp_path: Path) -> None:
    model = load_model("micro_vit")
    qmodel = quantize(model, gaussian_images(model, 4), Recipe(7, 8, "matmul", softmax="log", gelu="split"))
    layers = sum(name.endswith("weight_quantizer") for name in live_points(qmodel))
    export_onnx(qmodel, tmp_path / "q.onnx", runtime="onnxruntime")
    found = products(tmp_path / "q.onnx", "onnxruntime", gaussian_images(qmodel, 2))
    assert found.integer == layers + len(model.blocks)
    assert found.total == layers + 2 * len(model.blocks), "values are weighed in float"


def test_a_runtime_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(PsaqError, match=r"openvino is not installed; run pip install .psaq\[openvino\]"):
        session(tmp_path / "q.onnx", "openvino")


@pytest.mark.parametrize(("seconds", "times"), [(0.04, 3), (0.3, 1)])
def test_what_is_timed_runs_until_others_have_come_to_rest(
    seconds: float, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[float] = []
    clock = SimpleNamespace(perf_counter=lambda: seconds * len(calls))
    monkeypatch.setattr("psaq.quantization.deployment.runtimes.time", clock)
    settle(lambda: calls.append(seconds))
    assert len(calls) == times, "for 0.1 s, and once at least"


SIGNALLED = """
import gc, signal, subprocess, sys
from pathlib import Path
from launch import environment
from psaq.quantization.deployment.runtimes import session

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


class Sideways(torch.nn.Module):
    """Answers with a number for each image, and beside it with what belongs to none."""

    def __init__(self) -> None:
        super().__init__()
        self.body = load_model("micro_vit")

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.body(images).mean(1), self.body.pos_embed


@pytest.mark.parametrize("runtime", installed())
def test_outputs_that_belong_to_no_image_are_left_out(runtime, tmp_path: Path) -> None:
    model = Sideways().eval()
    images = gaussian_images(model.body, 3)
    qmodel = quantize(model, images, Recipe.paper(8, 8, scope="linear"))
    export_onnx(qmodel, tmp_path / "q.onnx")
    verdict = check_onnx(tmp_path / "q.onnx", qmodel, images, batch_size=3, repeats=1, runtime=runtime)
    assert session(tmp_path / "q.onnx", runtime)(images).shape == (3, 1)
    assert verdict.logit_sqnr > 10


def test_a_part_is_checked_on_what_it_is_called_with(tmp_path: Path) -> None:
    model = load_model("micro_vit")
    images = gaussian_images(model, 4)
    qmodel = quantize(model, images, Recipe.paper(8, 8, scope="linear"))
    export_onnx(qmodel, tmp_path / "q.onnx", "blocks")
    assert check_onnx(tmp_path / "q.onnx", qmodel, images, batch_size=2, repeats=1, part="blocks").logit_sqnr > 15

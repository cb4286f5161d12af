"""Weights in groups where models run: the simulation's very bits in torch, and its answer in every runtime."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from exported import as_exported
from repeats import also
from sqnr import usual_sqnr
from torch import Tensor, nn

from psaq import Recipe, deploy, quantize, simulate
from psaq.models.zoo import build_model, named_source
from psaq.quantization.deployment.onnx_graph import export_onnx
from psaq.quantization.deployment.runtimes import installed, session

NAMED = {"img_size": 32, "patch_size": 8, "embed_dim": 96, "depth": 2, "num_heads": 3, "num_classes": 10}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return build_model(named_source("vit_tiny_patch16_224.augreg_in21k_ft_in1k", NAMED)).eval()


def images(count: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("weights", [4, *also(3)])
@pytest.mark.parametrize("group", [32, 64, 128])
@torch.no_grad()
def test_the_deployed_model_computes_the_same_bits(model: nn.Module, weights: int, group: int) -> None:
    qmodel = quantize(model, images(), replace(Recipe.paper(weights, 8, "linear"), group=group))
    deployed, x = deploy(qmodel, torch.float32, "exact"), images(5, seed=2)
    assert torch.equal(deployed(x), qmodel(x))
    assert torch.equal(simulate(qmodel, torch.float32)(x), qmodel(x))
    assert f"int4 weights in groups of {group}" in repr(deployed.model)


@torch.no_grad()
def test_by_default_groups_are_multiplied_in_floats_and_it_says_why(model: nn.Module) -> None:
    qmodel = quantize(model, images(), Recipe.accurate(4, 8, "linear", group=32))
    deployed, x = deploy(qmodel, torch.float32), images(5, seed=2)
    assert "multiplied in float32, since oneDNN scales whole output channels" in repr(deployed)
    assert usual_sqnr(deployed(x), qmodel(x)) > 40


@pytest.mark.parametrize("runtime", installed() or [pytest.param(None, marks=pytest.mark.skip("no runtime"))])
@pytest.mark.parametrize("group", [64, *also(32, 128)])
@pytest.mark.parametrize("target", ["any", "its own"])
@torch.no_grad()
def test_every_runtime_computes_the_fake_quantised_model(
    model: nn.Module, runtime, group: int, target: str, tmp_path: Path
) -> None:
    # Sums of 8-bit weights overflow in runtimes' own files on some processors.
    qmodel = quantize(model, images(), Recipe.accurate(4, 8, ends=7, group=group))
    export_onnx(qmodel, tmp_path / "q.onnx", runtime=None if target == "any" else runtime)
    x = images(5, seed=2)
    expected = as_exported(qmodel, None if target == "any" else runtime)
    assert usual_sqnr(session(tmp_path / "q.onnx", runtime)(x), expected(x)) > 40


@pytest.mark.parametrize("weights", [4, 2])
def test_a_file_for_any_runtime_has_the_standards_blocks(model: nn.Module, weights: int, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    qmodel = quantize(model, images(), replace(Recipe.paper(weights, 8, "linear"), group=32))
    export_onnx(qmodel, tmp_path / "q.onnx")
    graph = onnx.load(str(tmp_path / "q.onnx")).graph
    blocks = [node for node in graph.node if any(attribute.name == "block_size" for attribute in node.attribute)]
    assert len(blocks) == 9  # all linear layers
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    stored, scale = (tensors[name] for name in blocks[-1].input[:2])
    assert onnx.TensorProto.DataType.Name(stored.data_type) == "INT4"
    assert [*scale.dims] == [1, 96 // 32, 10]


def test_a_file_for_onnxruntime_has_its_product_with_4_bits(model: nn.Module, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    qmodel = quantize(model, images(), Recipe.accurate(4, 8, group=64))
    export_onnx(qmodel, tmp_path / "q.onnx", runtime="onnxruntime")
    graph = onnx.load(str(tmp_path / "q.onnx")).graph
    assert Counter(node.op_type for node in graph.node)["MatMulNBits"] == 8  # all linear layers but the head of 8 bits

"""ONNX: integers in the file, Q/DQ in the graph, and onnxruntime's answer."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import as_exported
from makes import images_for, made
from repeats import also
from sqnr import usual_sqnr
from timm.models.vision_transformer import Block
from torch import nn

from psaq import PsaqError, Recipe, describe, quantize
from psaq.models.answers import Answering
from psaq.quantization.deployment.onnx_graph import export_float_onnx, export_onnx
from psaq.quantization.deployment.onnx_points import OnnxPoint
from psaq.quantization.deployment.runtimes import installed, session
from psaq.quantization.model.points import live_points, role
from psaq.quantization.quantizers.affine import AffineQuantizer, asymmetric_per_tensor
from psaq.quantization.quantizers.uneven import SplitQuantizer
from psaq.tasks.classification import logit_sqnr

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def images(count: int = 6, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["vit", "swin"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    small = request.getfixturevalue(request.param)
    small.pretrained_cfg = {**small.pretrained_cfg, "input_size": (3, 32, 32)}
    return small


def run(path: Path, x: torch.Tensor, as_it_is: bool = False) -> torch.Tensor:
    options = onnxruntime.SessionOptions()
    if as_it_is:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


def stored(path: Path) -> Counter:
    """Weights of two and more dimensions by type."""
    tensors = onnx.load(str(path)).graph.initializer
    return Counter(onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in tensors if len(tensor.dims) > 1)


@torch.no_grad()
@pytest.mark.parametrize("precision", [*also((8, 8)), (4, 8)], ids=str)
@pytest.mark.parametrize("scope", ["linear", *also("matmul"), "all"])
def test_onnxruntime_computes_the_fake_quantised_model(
    model: nn.Module, precision: tuple[int, int], scope: Any, tmp_path: Path
) -> None:
    qmodel = quantize(model, images(), Recipe.paper(*precision, scope=scope))
    export_onnx(qmodel, tmp_path / "q.onnx")
    x = images(5, seed=2)  # another number than was traced
    # Where sums are quantised, too, onnxruntime would fuse operators into ones of integers that round once more.
    found, expected = run(tmp_path / "q.onnx", x, as_it_is=scope == "all"), qmodel(x)
    # Any point left out or misplaced costs far more than what rounds otherwise, and so would sums of uint8 and int8
    # products that overflow 16 bits, as onnxruntime's do on some processors.
    assert logit_sqnr(found, expected) > logit_sqnr(model(x), expected) + 3
    assert scope == "all" or usual_sqnr(found, expected) > 40


@torch.no_grad()
@pytest.mark.parametrize("precision", [*also((8, 8)), (4, 8), *also((6, 6))], ids=str)
def test_uneven_inputs_of_a_product_stay_as_they_are(
    model: nn.Module, precision: tuple[int, int], tmp_path: Path
) -> None:
    qmodel = quantize(model, images(), Recipe.accurate(*precision))
    assert any(isinstance(point, SplitQuantizer) for point in live_points(qmodel).values())
    export_onnx(qmodel, tmp_path / "q.onnx")
    x = images(5, seed=2)
    # onnxruntime would round them to 8 bits once more, which leaves about 35 dB.
    assert usual_sqnr(run(tmp_path / "q.onnx", x), qmodel(x)) > 45


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_point_of_few_bits_is_a_clip_and_levels_of_a_byte(bits: int) -> None:
    quantizer = asymmetric_per_tensor(torch.tensor(-1.3), torch.tensor(2.9), bits)
    x = torch.linspace(-5, 5, 4001)
    assert torch.equal(OnnxPoint(quantizer)(x), quantizer(x))


@torch.no_grad()
def test_without_quantisation_the_graph_is_the_model(model: nn.Module, tmp_path: Path) -> None:
    qmodel = quantize(model, images(), Recipe.paper(8, 8))
    export_float_onnx(qmodel, tmp_path / "float.onnx")
    torch.testing.assert_close(run(tmp_path / "float.onnx", images()), model(images()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("bits", "kind"), [(8, "UINT8"), (7, "INT8"), (4, "INT4"), (2, "INT4")])
def test_weights_are_stored_as_integers(vit: nn.Module, bits: int, kind: str, tmp_path: Path) -> None:
    vit.pretrained_cfg = {**vit.pretrained_cfg, "input_size": (3, 32, 32)}
    qmodel = quantize(vit, images(), Recipe.paper(bits, 8, scope="linear"))
    export_onnx(qmodel, tmp_path / "q.onnx")
    kinds = stored(tmp_path / "q.onnx")
    weights = sum(name.endswith("weight_quantizer") for name in live_points(qmodel))
    assert kinds[kind] == weights
    assert kinds["FLOAT"] <= 2, "the class token and the position embedding"


@pytest.mark.parametrize(("runtime", "casts"), [(None, True), ("openvino", True), ("tensorrt", False)])
def test_nibbles_become_bytes_as_a_runtime_loads_them(
    vit: nn.Module, runtime: Any, casts: bool, tmp_path: Path
) -> None:
    vit.pretrained_cfg = {**vit.pretrained_cfg, "input_size": (3, 32, 32)}
    qmodel = quantize(vit, images(), Recipe.paper(4, 8, scope="linear"))
    export_onnx(qmodel, tmp_path / "q.onnx", runtime=runtime)
    graph = onnx.load(str(tmp_path / "q.onnx")).graph
    nibbles = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT4}
    readers = Counter(node.op_type for node in graph.node for name in node.input if name in nibbles)
    assert readers == {"Cast" if casts else "DequantizeLinear": len(nibbles)}


def test_every_point_is_a_pair_of_operators(vit: nn.Module, tmp_path: Path) -> None:
    vit.pretrained_cfg = {**vit.pretrained_cfg, "input_size": (3, 32, 32)}
    qmodel = quantize(vit, images(), Recipe.paper(4, 8))
    export_onnx(qmodel, tmp_path / "q.onnx")
    graph = onnx.load(str(tmp_path / "q.onnx"))
    operators = Counter(node.op_type for node in graph.graph.node)
    points = live_points(qmodel).keys() - {"position_embedding"}  # which no image changes: a constant of the graph
    weights = sum(name.endswith("weight_quantizer") for name in points)
    assert operators["QuantizeLinear"] == len(points) - weights
    assert operators["DequantizeLinear"] == len(points)
    assert graph.opset_import[0].version == 21


class Repeating(nn.Module):
    """Repeats an embedding for each image, and ends in a weight without a layer."""

    def __init__(self, joins: str):
        super().__init__()
        self.joins = joins
        self.embed, self.block = nn.Conv2d(3, 16, 8, stride=8), Block(16, num_heads=2)
        self.embedding, self.projection = nn.Parameter(torch.randn(1, 16, 16)), nn.Parameter(torch.randn(16, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches, learnt = self.embed(x).flatten(2).transpose(1, 2), self.embedding.repeat(len(x), 1, 1)
        tokens = patches + learnt if self.joins == "sum" else torch.cat([learnt, patches], 1)
        return self.block(tokens).mean(1) @ self.projection


@torch.no_grad()
@pytest.mark.parametrize("joins", ["sum", "concatenation"])
@pytest.mark.parametrize("scope", ["all", "matmul"])
def test_what_is_repeated_for_each_image_is_so_for_any_number(scope: Any, joins: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    qmodel = quantize(describe(Repeating(joins).eval(), image_size=32), images(), Recipe.paper(7, 8, scope=scope))
    points = Counter(map(role, live_points(qmodel)))
    assert points["position_embedding"] == (scope == "all" and joins == "sum")
    export_onnx(qmodel, tmp_path / "q.onnx")
    for count in (1, 5):
        x = images(count, seed=2)
        assert usual_sqnr(run(tmp_path / "q.onnx", x, as_it_is=True), qmodel(x)) > 40
    levels = Counter(node.op_type for node in onnx.load(str(tmp_path / "q.onnx")).graph.node)["QuantizeLinear"]
    constants = points["position_embedding"] + points["weight_quantizer"]
    assert levels == points.total() - constants, "a weight without a layer keeps its levels"


def test_a_number_of_images_that_is_a_constant_is_refused(tmp_path: Path) -> None:
    class Counting(Repeating):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * torch.arange(1.0, len(x) + 1)[:, None]

    qmodel = quantize(describe(Counting("sum").eval(), image_size=32), images(), Recipe.paper(7, 8))
    with pytest.raises(
        PsaqError, match=r"Counting: its forward takes the number of images for a constant, as len\(x\)"
    ):
        export_onnx(qmodel, tmp_path / "q.onnx")
    assert not (tmp_path / "q.onnx").exists()


def test_what_cannot_be_exported_is_refused(vit: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(PsaqError, match="is not quantised; export what"):
        export_onnx(vit, tmp_path / "q.onnx")
    qmodel = quantize(vit, images(), Recipe.paper(8, 8, scope="linear"))
    qmodel.blocks[0].attn.proj.input = nn.Tanh()  # not the identity, and no quantiser that ONNX has
    with pytest.raises(PsaqError, match=r"blocks.0.attn.proj.input: ONNX has no operator for a Tanh"):
        export_onnx(qmodel, tmp_path / "q.onnx")
    assert not (tmp_path / "q.onnx").exists()


@pytest.mark.parametrize("make", ["transformers: ViT", "transformers: SegFormer", "own: module"])
@torch.no_grad()
def test_models_of_other_makes_are_exported(make, tmp_path):
    model = made(make)
    x = images_for(model)
    qmodel = quantize(model, x, Recipe.paper(4, 8, scope="linear"))
    export_onnx(qmodel, tmp_path / "model.onnx")
    assert usual_sqnr(session(tmp_path / "model.onnx")(x), Answering(qmodel)(x)) > 60


def test_a_detector_names_the_part_that_can_be_exported(tmp_path):
    model = made("own: fused")
    qmodel = describe(quantize(model, images_for(model), Recipe.paper()), takes="list")
    with pytest.raises(PsaqError, match=r"Own: takes a list .* name a part that takes a batch of images: embed, norm"):
        export_onnx(qmodel, tmp_path / "model.onnx")
    with pytest.raises(PsaqError, match="part 'neck': Own has none of that name; it has embed, norm"):
        export_onnx(qmodel, tmp_path / "model.onnx", part="neck")
    assert not (tmp_path / "model.onnx").exists()


@torch.no_grad()
def test_a_part_is_exported_alone(tmp_path):
    model = made("own: fused")
    x = images_for(model)
    qmodel = quantize(model, x, Recipe.paper(4, 8))
    export_onnx(qmodel, tmp_path / "part.onnx", part="embed")
    found = session(tmp_path / "part.onnx")(x)
    assert usual_sqnr(found, qmodel.embed(x).flatten(1)) > 60


# Written for a runtime ------------------------------------------------------------------------------------------------

RUNTIMES = ["onnxruntime", "openvino", "tensorrt"]


@torch.no_grad()
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("precision", "scope"), [((7, 8), "linear"), ((6, 6), "matmul"), ((4, 8), "all")], ids=str)
def test_every_runtimes_file_computes_the_fake_quantised_model(
    vit: nn.Module, runtime: Any, precision: tuple[int, int], scope: Any, tmp_path: Path
) -> None:
    vit.pretrained_cfg = {**vit.pretrained_cfg, "input_size": (3, 32, 32)}
    qmodel = quantize(vit, images(), Recipe.paper(*precision, scope=scope))  # of 7 bits sums are right everywhere
    export_onnx(qmodel, tmp_path / "q.onnx", runtime=runtime)
    for count in (1, 5):
        x = images(count, seed=2)
        if scope == "matmul" and runtime == "openvino":  # whose int8 keys onnxruntime's optimiser refuses
            pytest.importorskip("openvino")
            found = session(tmp_path / "q.onnx", runtime)(x)
        else:
            found = run(tmp_path / "q.onnx", x, as_it_is=scope == "all")
        assert usual_sqnr(found, as_exported(qmodel, runtime)(x)) > (30 if scope == "all" else 40)


@pytest.mark.parametrize("runtime", [None, *RUNTIMES])
def test_a_file_is_of_the_kind_that_its_runtime_multiplies_in_integers(
    vit: nn.Module, runtime: Any, tmp_path: Path
) -> None:
    vit.pretrained_cfg = {**vit.pretrained_cfg, "input_size": (3, 32, 32)}
    qmodel = quantize(vit, images(), Recipe.paper(8, 8, scope="linear"))
    export_onnx(qmodel, tmp_path / "q.onnx", runtime=runtime)
    graph = onnx.load(str(tmp_path / "q.onnx")).graph
    weights = sum(name.endswith("weight_quantizer") for name in live_points(qmodel))
    assert stored(tmp_path / "q.onnx")["UINT8" if runtime is None else "INT8"] == weights
    zero_points = {name: len(node.input) for node in graph.node for name in node.input[:1] if "eights" in name}
    assert all(count == (3 if runtime is None else 2) for count in zero_points.values())
    convolutions = sum(node.op_type == "Conv" for node in graph.node)
    assert convolutions == (1 if runtime in ("openvino", "tensorrt") else 0)
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    aliases = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}
    points = [node.input[2] for node in graph.node if node.op_type == "QuantizeLinear"]
    zeros = [tensors[aliases.get(name, name)] for name in points]
    assert {str(zero.dtype) for zero in zeros} == {"int8" if runtime == "tensorrt" else "uint8"}
    assert runtime != "tensorrt" or not any(zeros)


@torch.no_grad()
@pytest.mark.parametrize("runtime", [*also("onnxruntime"), "openvino", *also("tensorrt")])
def test_a_runtimes_file_has_even_steps_or_none(vit: nn.Module, runtime: Any, tmp_path: Path) -> None:
    vit.pretrained_cfg = {**vit.pretrained_cfg, "input_size": (3, 32, 32)}
    # Of 7 bits sums are right everywhere.
    qmodel = quantize(vit, images(), Recipe.accurate(7, 6, scope="matmul", ends=7))
    export_onnx(qmodel, tmp_path / "q.onnx", runtime=runtime)
    x = images(5, seed=2)
    where = "openvino" if runtime == "openvino" else "onnxruntime"
    if where in installed():
        found = session(tmp_path / "q.onnx", where)(x)
        assert usual_sqnr(found, as_exported(qmodel, runtime)(x)) > 40
    operators = Counter(node.op_type for node in onnx.load(str(tmp_path / "q.onnx")).graph.node)
    assert not {"Log", "Round", "Where"} & operators.keys(), "no level is a formula"


@torch.no_grad()
@pytest.mark.parametrize("runtime", ["openvino", "tensorrt"])
def test_int8_keys_that_onnxruntimes_optimiser_refuses_are_run_all_the_same(
    vit: nn.Module, runtime: Any, tmp_path: Path
) -> None:
    vit.pretrained_cfg = {**vit.pretrained_cfg, "input_size": (3, 32, 32)}
    qmodel = quantize(vit, images(), Recipe.paper(7, 6, scope="matmul"))
    for name, point in live_points(qmodel).items():
        if role(name) == "key":  # nothing is left to subtract before the levels, or to add behind them
            qmodel.set_submodule(name, AffineQuantizer(point.scale / 4, torch.tensor(128), 8))
    export_onnx(qmodel, tmp_path / "q.onnx", runtime=runtime)
    assert usual_sqnr(session(tmp_path / "q.onnx")(images()), as_exported(qmodel, runtime)(images())) > 40


def test_shapes_are_constants_and_attention_has_few_operators(vit: nn.Module, tmp_path: Path) -> None:
    vit.pretrained_cfg = {**vit.pretrained_cfg, "input_size": (3, 32, 32)}
    qmodel = quantize(vit, images(), Recipe.paper(8, 8, scope="linear"))
    export_onnx(qmodel, tmp_path / "q.onnx")
    operators = Counter(node.op_type for node in onnx.load(str(tmp_path / "q.onnx")).graph.node)
    assert operators["Shape"] <= 2, "that of the class token, which is repeated for every image"
    assert operators["Softmax"] == operators["Mul"] == len(vit.blocks)
    assert not {"Sqrt", "Cast", "Where", "ConstantOfShape"} & operators.keys()


@torch.no_grad()
def test_what_computes_its_shapes_is_exported_as_it_is(tmp_path: Path) -> None:
    model = made("transformers: SegFormer")
    x = images_for(model)
    qmodel = quantize(model, x, Recipe.paper(4, 8, scope="linear"))
    export_onnx(qmodel, tmp_path / "model.onnx")
    for count in (1, len(x)):  # of one image, a level that rounds elsewhere is not outvoted
        found = session(tmp_path / "model.onnx")(x[:count])
        assert usual_sqnr(found, Answering(qmodel)(x[:count])) > 30


def test_an_unknown_runtime_is_refused(vit: nn.Module, tmp_path: Path) -> None:
    qmodel = quantize(vit, images(), Recipe.paper(8, 8, scope="linear"))
    with pytest.raises(PsaqError, match="runtime 'coreml': choose from onnxruntime, openvino, tensorrt"):
        export_onnx(qmodel, tmp_path / "q.onnx", runtime="coreml")  # type: ignore[arg-type]


@torch.no_grad()
def test_openvino_multiplies_every_linear_layer_in_integers(vit: nn.Module, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    vit.pretrained_cfg = {**vit.pretrained_cfg, "input_size": (3, 32, 32)}
    qmodel, x = quantize(vit, images(), Recipe.paper(7, 8, scope="linear")), images(5, seed=2)
    export_onnx(qmodel, tmp_path / "q.onnx", runtime="openvino")
    options = {"PERF_COUNT": True, "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(str(tmp_path / "q.onnx"), "CPU", options).create_infer_request()
    found = torch.from_numpy(request.infer([x.numpy()])[0].copy())
    assert usual_sqnr(found, qmodel(x)) > 40
    kinds = ("FullyConnected", "Convolution", "FullyConnectedCompressed", "FullyConnectedQuantized")
    products = [info.exec_type for info in request.get_profiling_info() if info.node_type.startswith(kinds)]
    assert len(products) == sum(name.endswith("weight_quantizer") for name in live_points(qmodel))
    assert all(kind.upper().endswith("I8") for kind in products)

"""The integer linear layer and the deployed model on a GPU, at full size: run `pytest tests/gpu` where there is one."""

import copy
import math

import pytest
import torch

from psaq import Recipe, capture, deploy, gaussian_images, load_model, quantize
from psaq.tasks.classification import logit_sqnr
from psaq_kernels import PerTensor, PerToken, QuantizedWeight, layer_norm_quantize, linear_torch, quant_linear
from psaq_kernels.linear import _quant_linear

levels_triton = pytest.importorskip("psaq_kernels.levels_triton")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"),
]

STATIC, NEXT = PerTensor(0.02, 113), PerTensor(0.05, 100)
LAYERS = {"qkv": (768, 2304), "proj": (768, 768), "fc1": (768, 3072), "fc2": (3072, 768), "patch": (48, 96)}


def make_weight(outputs: int, inputs: int, bits: int, group: int | None = None) -> QuantizedWeight:
    torch.manual_seed(0)
    integers = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (outputs, inputs), dtype=torch.int8)
    shape = (outputs,) if group is None else (outputs, -(-inputs // group))
    scale = torch.rand(shape, device="cuda") * 1e-3 + 1e-5
    return QuantizedWeight.from_integers(integers.cuda(), scale, bits, group)


def make_x(rows: int, inputs: int, dtype: torch.dtype) -> torch.Tensor:
    torch.manual_seed(1)
    if dtype == torch.int8:
        return torch.randint(-128, 128, (rows, inputs), dtype=torch.int8, device="cuda")
    return torch.randn(rows, inputs, device="cuda").to(dtype)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("rows", [1, 197, 1576])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("input", [STATIC, PerToken()], ids=["static", "per token"])
def test_both_backends_give_the_same_bits(
    layer: str, rows: int, bits: int, dtype: torch.dtype, input: PerTensor | PerToken
) -> None:
    if dtype == torch.int8 and isinstance(input, PerToken):
        pytest.skip("levels bring no scales of their own")
    inputs, outputs = LAYERS[layer]
    x, weight, bias = make_x(rows, inputs, dtype), make_weight(outputs, inputs, bits), torch.randn(outputs).cuda()
    result = torch.bfloat16 if dtype == torch.int8 else dtype
    for output in (None, NEXT):
        found = quant_linear(x, weight, input, bias, output=output, dtype=None if output else result)
        expected = quant_linear(
            x, weight, input, bias, output=output, dtype=None if output else result, backend="torch"
        )
        assert torch.equal(found, expected)


@pytest.mark.parametrize("shape", [(1, 33, 7), (70, 97, 41), (130, 1025, 65)], ids=str)
@pytest.mark.parametrize("bits", [8, 4])
def test_odd_shapes_and_strides(shape: tuple[int, int, int], bits: int) -> None:
    rows, inputs, outputs = shape
    weight = make_weight(outputs, inputs, bits)
    x = make_x(inputs, rows, torch.float32).T
    assert torch.equal(quant_linear(x, weight, STATIC), quant_linear(x, weight, STATIC, backend="torch"))


@pytest.mark.parametrize("shape", [(1, 33, 7), (197, 192, 576), (1576, 768, 192)], ids=str)
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_groups_give_the_same_bits(shape: tuple[int, int, int], group: int, bits: int, dtype: torch.dtype) -> None:
    rows, inputs, outputs = shape
    x, weight = make_x(rows, inputs, dtype), make_weight(outputs, inputs, bits, group)
    result = torch.bfloat16 if dtype == torch.int8 else dtype
    for input in (STATIC,) if dtype == torch.int8 else (STATIC, PerToken()):
        found = quant_linear(x, weight, input, dtype=result)
        assert torch.equal(found, quant_linear(x, weight, input, dtype=result, backend="torch"))


def test_gelu_in_the_kernel() -> None:
    x, weight, bias = make_x(197, 768, torch.float32), make_weight(3072, 768, 8), torch.linspace(-4, 4, 3072).cuda()
    before = quant_linear(x, weight, STATIC, bias).double()
    found = quant_linear(x, weight, STATIC, bias, activation="gelu").double()
    assert ((found - torch.nn.functional.gelu(before)).abs() <= 2.0**-21 * before.abs() + 1e-30).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [96, 192, 768, 1000])
def test_layer_norm_levels_are_the_nearest(dtype: torch.dtype, channels: int) -> None:
    x = make_x(394, channels, dtype) * 3 + 5
    weight, bias = torch.rand(channels).cuda() + 0.5, torch.randn(channels).cuda()
    levels = layer_norm_quantize(x, weight, bias, STATIC)
    exact = torch.nn.functional.layer_norm(x.double(), (channels,), weight.double(), bias.double(), 1e-6)
    exact = (exact / STATIC.scale + STATIC.zero_point).clamp(0, 255) - 128
    assert (levels.double() - exact).abs().max() <= 0.5 + 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("input", [STATIC, PerTensor(0.7, 3, bits=4), PerToken(), PerToken(5)], ids=str)
def test_levels_are_those_of_torch(dtype: torch.dtype, input: PerTensor | PerToken) -> None:
    """Ties, saturation, infinities and NaN included."""
    x = make_x(100, 130, torch.float32) * 3
    x[0, :7] = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5]) * 0.02
    x[1, :3] = torch.tensor([math.inf, -math.inf, math.nan])
    x[2] = 0
    kernel, reference = levels_triton.quantize_rows(x.to(dtype), input), linear_torch.quantize_rows(x.to(dtype), input)
    finite = torch.arange(100) != 1 if isinstance(input, PerToken) else torch.arange(100) >= 0
    assert torch.equal(kernel[0][finite], reference[0][finite])
    if isinstance(input, PerToken):
        torch.testing.assert_close(kernel[1], reference[1].flatten(), rtol=0, atol=0, equal_nan=True)


def test_no_rows_and_other_devices() -> None:
    weight = make_weight(64, 96, 8)
    assert quant_linear(torch.zeros(0, 3, 96, device="cuda"), weight, STATIC).shape == (0, 3, 64)
    with pytest.raises(ValueError, match="weight is on cuda"):
        quant_linear(torch.zeros(2, 96), weight, STATIC)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("input", [[8.0, 113.0, 0.02], [8.0]], ids=["static", "per token"])
def test_opcheck(bits: int, input: list[float]) -> None:
    weight = make_weight(64, 96, bits)
    tensors = (make_x(50, 96, torch.bfloat16), weight.values, weight.scale, weight.column_sums, torch.zeros(64).cuda())
    for output, dtype in (([], torch.bfloat16), ([8.0, 100.0, 0.05], torch.int8)):
        torch.library.opcheck(_quant_linear, (*tensors, input, True, output, dtype, "triton"))


def test_a_cuda_graph_replays_it() -> None:
    x, weight = make_x(197, 768, torch.bfloat16), make_weight(768, 768, 8)
    warm = quant_linear(x, weight, STATIC)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = quant_linear(x, weight, STATIC)
    x.copy_(-x)
    graph.replay()
    assert torch.equal(y, quant_linear(x, weight, STATIC))
    assert not torch.equal(y, warm)


@torch.no_grad()
@pytest.mark.parametrize("name", ["micro_vit", "micro_swin"])
@pytest.mark.parametrize("weights", [8, 4])
def test_a_deployed_model_stays_close_and_compiles(name: str, weights: int) -> None:
    model = load_model(name).cuda()
    images = gaussian_images(model, 16).cuda()
    qmodel = quantize(model, images, Recipe.paper(weights, 8, scope="linear"))
    full = model(images)
    for dtype in (torch.float32, torch.bfloat16):
        rounded = copy.deepcopy(model).to(dtype)(images.to(dtype)).float()
        # The noise of quantising and the noise of computing in this type, and no more than twice their sum.
        expected = together(logit_sqnr(qmodel(images), full), logit_sqnr(rounded, full)) - 3
        fast = deploy(qmodel, dtype)
        assert logit_sqnr(fast(images).float(), full) > expected
        compiled = torch.compile(fast, fullgraph=True)
        assert logit_sqnr(compiled(images).float(), full) > expected


@torch.no_grad()
@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_captured_model_answers_as_the_model_does(is_compiled: bool) -> None:
    model = load_model("micro_vit").cuda()
    images = gaussian_images(model, 8).cuda()
    fast = deploy(quantize(model, images, Recipe.paper(4, 8, scope="linear")), torch.bfloat16)
    captured = capture(torch.compile(fast) if is_compiled else fast, images)
    for batch in (images, images.flip(0)):
        answers, expected = captured(batch), fast(batch)
        same = logit_sqnr(answers.float(), expected.float()) > 10 if is_compiled else torch.equal(answers, expected)
        assert same


def together(*decibels: float) -> float:
    """The signal-to-noise ratio under independent noises."""
    return -10 * math.log10(sum(10 ** (-one / 10) for one in decibels))

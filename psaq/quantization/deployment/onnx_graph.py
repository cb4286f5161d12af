"""A fake-quantised model as an ONNX graph: QuantizeLinear and DequantizeLinear around float operators."""

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Float, Int8
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.files import write_whole
from psaq.models.copying import copied
from psaq.models.zoo import data_config
from psaq.quantization.deployment.onnx_part import OnnxPart, part_of, refused, taken_by
from psaq.quantization.model.conversion import lent_layers
from psaq.quantization.model.layers import (
    PIXELS,
    QuantConv,
    QuantLayer,
    QuantLinear,
    flattened_patches,
    is_patchwise,
    out_of_sight,
)
from psaq.quantization.model.points import WEIGHT, Point, all_points
from psaq.quantization.quantizers.affine import AffineQuantizer
from psaq.quantization.quantizers.uneven import LogQuantizer, SplitQuantizer
from psaq_kernels.packing import NIBBLE_BITS

if TYPE_CHECKING:
    import onnx

OPSET = 21
"""The first with 4-bit integers."""

_TRACED_OPSET = 20  # the newest that torch traces into; what it emits means the same in 21
_INPUT, _OUTPUT = "images", "logits"
_VALUES = "integers"
_UINT8_ZERO = 128


def export_onnx(qmodel: nn.Module, path: Path | str, part: str | None = None) -> None:
    """Write a quantised model as ONNX, opset 21, for any number of images.

    Weights are stored as the integers they are, followed by DequantizeLinear: int4 up to 4 bits, above uint8 with 128
    for zero, since onnxruntime's products with int8 overflow on x86 processors that have no VNNI. Every
    live activation point is a QuantizeLinear and a DequantizeLinear on uint8; of fewer than 8 bits, behind a Clip.
    Points with uneven steps (softmax and GELU of the accurate recipe) are their formulas in float operators, and
    onnxruntime multiplies 4-bit weights in float: only 8 bits with scope "linear" have all linear layers in integers.
    With scope "all" onnxruntime fuses sums into integer operators that round once more.

    Args:
        part: the module to export, by name, in place of the whole: the backbone of a detector, which chooses its boxes
            as it goes. It must take a batch of images.

    Raises:
        PsaqError: not a quantised model, or one that cannot be exported whole; a quantiser that ONNX has no operator
            for, an onnx package that is missing, or a file that cannot be written.
    """
    if getattr(qmodel, "psaq_recipe", None) is None:
        raise PsaqError(f"{type(qmodel).__name__}: is not quantised; export what psaq.quantize or psaq.load returned")
    model = copied(qmodel).cpu().float().eval()
    narrow = _swap_layers(model)
    _write(*_traced(model, qmodel, part, narrow), Path(path))


def export_float_onnx(qmodel: nn.Module, path: Path | str, part: str | None = None) -> None:
    """The same architecture and weights with every quantisation point off, to be compared with in speed."""
    model = copied(qmodel).cpu().float().eval()
    for name in all_points(model):
        model.set_submodule(name, Point())
    _write(*_traced(model, qmodel, part, set()), Path(path))


# Layers whose trace is the wanted graph --------------------------------------------------------------------------


class _Stored(torch.autograd.Function):
    """Integers times their scales; in the graph, DequantizeLinear."""

    @staticmethod
    def forward(_: Any, integers: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int) -> Tensor:
        shape = [1] * integers.ndim
        shape[axis] = -1
        steps = integers.float() if zero_point is None else integers.float() - zero_point.float().view(shape)
        return steps * scale.view(shape)

    @staticmethod
    def symbolic(graph: Any, integers: Any, scale: Any, zero_point: Any, axis: int) -> Any:
        parameters = (scale,) if zero_point is None else (scale, zero_point)
        real = graph.op("DequantizeLinear", integers, *parameters, axis_i=axis)
        return real.setType(integers.type().with_dtype(torch.float32))


class _Quantized(torch.autograd.Function):
    """Fake quantisation to levels of uint8; in the graph, QuantizeLinear and DequantizeLinear."""

    @staticmethod
    def forward(_: Any, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point.int(), 0, 255)

    @staticmethod
    def symbolic(graph: Any, x: Any, scale: Any, zero_point: Any) -> Any:
        levels = graph.op("QuantizeLinear", x, scale, zero_point)
        return graph.op("DequantizeLinear", levels, scale, zero_point).setType(x.type())


class _OnnxPoint(nn.Module):
    def __init__(self, point: AffineQuantizer):
        super().__init__()
        zero_point = point.zero_point - point.lowest
        self.register_buffer("scale", point.scale)
        self.register_buffer("zero_point", zero_point.to(torch.uint8))
        limits = torch.tensor([0, 2**point.bits - 1]) - zero_point.cpu()
        self.limits = None if point.bits == 8 else [limit * point.scale.item() for limit in limits.tolist()]

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        inside = x if self.limits is None else x.clamp(*self.limits)
        return _Quantized.apply(inside, self.scale, self.zero_point)


class _OnnxLogPoint(nn.Module):
    """Levels by ordinary operators, their values from a table: ONNX itself quantises by even steps only."""

    table: Tensor

    def __init__(self, point: LogQuantizer):
        super().__init__()
        self.point = point
        self.register_buffer("table", point.real(torch.arange(2**point.bits).to(point.top)))

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return self.table[self.point.levels(x).long()]


class _OnnxSplitPoint(nn.Module):
    """Each part's levels by ordinary operators."""

    def __init__(self, point: SplitQuantizer):
        super().__init__()
        self.point = point

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return self.point.values(x)


class _OnnxWeight(nn.Module):
    """Stored integers, and what they stand for."""

    def __init__(self, integers: Int8[Tensor, "..."], quantizer: AffineQuantizer, axis: int):
        super().__init__()
        self.axis = axis
        self.register_buffer("scale", quantizer.scale)
        if quantizer.bits <= NIBBLE_BITS:
            self.register_buffer(_VALUES, integers)
            self.zero_point = None
        else:
            self.register_buffer(_VALUES, (integers.int() + _UINT8_ZERO).to(torch.uint8))
            self.register_buffer("zero_point", torch.full_like(quantizer.scale, _UINT8_ZERO, dtype=torch.uint8))

    @property
    def dtype(self) -> torch.dtype:
        """Of what it stands for, which models ask of a layer's weight."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        """Likewise."""
        return torch.device("cpu")

    def forward(self, _: object = None) -> Float[Tensor, "..."]:
        return _Stored.apply(self.integers, self.scale, self.zero_point, self.axis)


class _OnnxLinear(nn.Module):
    """The weight is stored as the matmul reads it, (inputs, outputs): runtimes fuse DequantizeLinear and MatMul.

    Where the input is on no uniform grid, the weight has an axis more: onnxruntime would fuse the two all the same,
    into a product that rounds its input to 8 bits in its own way.
    """

    def __init__(self, layer: QuantLayer, integers: Int8[Tensor, "outputs inputs"], quantizer: AffineQuantizer):
        super().__init__()
        self.input, self.output, self.bias = layer.input, layer.output, layer.bias
        stored = integers.t().contiguous()
        stored = stored if isinstance(layer.input, _OnnxPoint) else stored[None]
        self.weight = _OnnxWeight(stored, quantizer, axis=stored.ndim - 1)

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        with out_of_sight():
            y = self.input(x) @ self.weight()
            return self.output(y if self.bias is None else y + self.bias)


class _OnnxPatchEmbedding(_OnnxLinear):
    """A patchwise convolution as a linear layer: onnxruntime multiplies integers there, and floats in a convolution."""

    def __init__(self, layer: QuantLayer, integers: Int8[Tensor, "outputs ..."], quantizer: AffineQuantizer):
        super().__init__(layer, integers.flatten(1), quantizer)
        self.pixels = layer._modules.get(PIXELS)
        self.patch = (layer.kernel_size[0], layer.kernel_size[1])

    def forward(self, x: Float[Tensor, "images inputs height width"]) -> Tensor:
        x = x if self.pixels is None else self.pixels(x)
        return rearrange(super().forward(flattened_patches(x, self.patch)), "b h w d -> b d h w")


def _swap_layers(model: nn.Module) -> set[str]:
    """Put traceable layers and points in place; returns the names of the weights that 4 bits hold."""
    points = {name: point for name, point in all_points(model).items() if not isinstance(point, Point)}
    for name, point in points.items():
        if not name.endswith(f".{WEIGHT}"):
            model.set_submodule(name, _onnx_point(name, point))
    weights = {name.removesuffix(f".{WEIGHT}"): point for name, point in points.items() if name.endswith(f".{WEIGHT}")}
    lent, narrow = lent_layers(model), set()
    for name, quantizer in weights.items():
        assert isinstance(quantizer, AffineQuantizer)
        layer = _onnx_layer(name, model.get_submodule(name), quantizer, lent)
        model.set_submodule(name, layer)
        if quantizer.bits <= NIBBLE_BITS:
            narrow.add(f"{name}.{WEIGHT if isinstance(layer, QuantLayer) else 'weight'}.{_VALUES}")
    return narrow


def _onnx_point(name: str, point: nn.Module) -> nn.Module:
    if isinstance(point, AffineQuantizer):
        return _OnnxPoint(point)
    if isinstance(point, LogQuantizer):
        return _OnnxLogPoint(point)
    if isinstance(point, SplitQuantizer):
        return _OnnxSplitPoint(point)
    raise PsaqError(f"{name}: ONNX has no operator for a {type(point).__name__}; take what psaq.quantize returned")


def _onnx_layer(name: str, layer: nn.Module, quantizer: AffineQuantizer, lent: set[str]) -> nn.Module:
    assert isinstance(layer, QuantLayer)
    integers = quantizer.integers(layer.rows(layer.weight))
    if isinstance(layer, QuantLinear) and name not in lent:
        return _OnnxLinear(layer, integers, quantizer)
    if isinstance(layer, QuantConv) and is_patchwise(layer):
        return _OnnxPatchEmbedding(layer, integers, quantizer)
    layer.weight_quantizer = _OnnxWeight(integers, quantizer, axis=0)
    return layer


# Trace to file ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def _traced(
    model: nn.Module, qmodel: nn.Module, part: str | None, narrow: set[str]
) -> tuple["onnx.ModelProto", set[str]]:
    """The graph of the model or its part, and what the narrow weights are called there."""
    onnx, config = _onnx(), data_config(qmodel)
    traced = OnnxPart(part_of(model, part))
    images = taken_by(traced.model, model, torch.zeros(2, config.channels, *config.image_size))
    outputs = _output_names(traced(images))
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # torch's newer exporter needs a package more; the older one announces that it is the older one, and that
        # timm's checks of image sizes are not part of the graph.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        try:
            torch.onnx.export(
                traced,
                (images,),
                buffer,  # type: ignore[arg-type]
                dynamo=False,
                opset_version=_TRACED_OPSET,
                input_names=[_INPUT],
                output_names=outputs,
                dynamic_axes={name: {0: "batch"} for name in (_INPUT, *outputs)},
            )
        except (RuntimeError, TypeError, ValueError, torch.onnx.errors.OnnxExporterError) as error:
            raise refused(model, error) from error
    prefix = f"{part}." if part else ""
    names = {f"model.{name.removeprefix(prefix)}" for name in narrow if name.startswith(prefix)}
    return onnx.load_model_from_string(buffer.getvalue()), names


def _output_names(output: Tensor | tuple[Tensor, ...]) -> list[str]:
    return [_OUTPUT] if isinstance(output, Tensor) else [f"output{place}" for place in range(len(output))]


def _write(graph: "onnx.ModelProto", narrow: set[str], path: Path) -> None:
    onnx = _onnx()
    graph.opset_import[0].version = OPSET
    for tensor in graph.graph.initializer:
        if tensor.name in narrow:
            tensor.CopyFrom(_as_int4(tensor))
    onnx.checker.check_model(graph, full_check=True)
    write_whole(path, lambda temporary: onnx.save_model(graph, temporary))


def _as_int4(tensor: "onnx.TensorProto") -> "onnx.TensorProto":
    """Two neighbours to a byte, the first in the low half, as ONNX has it."""
    onnx = _onnx()
    integers = onnx.numpy_helper.to_array(tensor).flatten()
    return onnx.helper.make_tensor(tensor.name, onnx.TensorProto.INT4, tensor.dims, integers)


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise PsaqError('onnx is not installed; run pip install "psaq[onnx]"') from error
    return onnx

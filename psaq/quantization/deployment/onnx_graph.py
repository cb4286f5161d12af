"""A fake-quantised model as an ONNX graph: QuantizeLinear and DequantizeLinear around float operators."""

import copy
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int8
from torch import Tensor, nn

from psaq.choices import Runtime
from psaq.errors import PsaqError
from psaq.files import write_whole
from psaq.models.copying import copied
from psaq.models.wrappers import innermost
from psaq.models.zoo import data_config
from psaq.quantization.deployment.attention import WrittenOut, whole
from psaq.quantization.deployment.onnx_batch import BATCH, FEW, MORE, free_batch, is_for_one_number
from psaq.quantization.deployment.onnx_groups import RUNTIME_DOMAIN, OnnxGroups, has_groups
from psaq.quantization.deployment.onnx_nibbles import store_nibbles
from psaq.quantization.deployment.onnx_part import OnnxPart, check_fits, part_of, refused, taken_by
from psaq.quantization.deployment.onnx_points import UINT8_ZERO, OnnxPoint, swap_points
from psaq.quantization.deployment.onnx_targets import TARGETS, Target
from psaq.quantization.deployment.unwatched import stop_watching
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
from psaq.quantization.model.points import WEIGHT, Point, all_points, live_points
from psaq.quantization.quantizers.affine import AffineQuantizer
from psaq_kernels.packing import NIBBLE_BITS

if TYPE_CHECKING:
    import onnx

OPSET = 21
"""The first with 4-bit integers."""


_TRACED_OPSET = 20  # the newest that torch traces into; what it emits means the same in 21
_INPUT, _OUTPUT = "images", "logits"
EXACT_BITS = 7
"""Two products of such weights with bytes fit into 16 bits, in which processors without VNNI sum them."""
_VALUES = "integers"


def export_onnx(qmodel: nn.Module, path: Path | str, part: str | None = None, runtime: Runtime | None = None) -> None:
    """Write a quantised model as ONNX, opset 21, for any number of images.

    Weights are stored as the integers they are, followed by DequantizeLinear, in groups by its block_size; of up to 4
    bits as int4, which a Cast makes int8 as the file is loaded, so that they are multiplied as those of 8 bits are; in
    groups, and for "tensorrt", as int4 that is multiplied in float. Every live activation point is a QuantizeLinear and
    a DequantizeLinear; of fewer than 8 bits, behind a Clip; of a learnt term that no image changes, a constant. With
    scope "all" onnxruntime fuses sums into integer operators that round once more.

    What else is in the file depends on whom it is for:

    - None: weights of 8 bits as uint8 with 128 for zero, and all points as they are simulated. The sums are right on
      every processor, in every runtime; OpenVINO multiplies those weights in float32. Points with uneven steps (softmax
      and GELU of the accurate recipe) are their formulas in float operators, and what they feed is multiplied in float:
      only with scope "linear" are all linear layers in integers.
    - "onnxruntime": int8 weights; groups of up to 4 bits by its own MatMulNBits. With weights of 8 bits only for
      processors with VNNI, AMX or their like: on others onnxruntime's sums overflow. All linear layers and the scores
      of fused attention are multiplied in integers: GELU's uneven levels become 256 even ones over the same range,
      queries and keys get 255 around zero, and probabilities with log steps stay in float, as do the values that they
      weigh.
    - "openvino": likewise, and with the patch embedding as a convolution. onnxruntime's optimiser refuses int8 keys.
    - "tensorrt": likewise but for queries and keys, whose own levels become int8 around 0 as all activations' do: what
      is subtracted before them is made up for in the bias.

    Args:
        part: the module to export, by name, in place of the whole: the backbone of a detector, which chooses its boxes
            as it goes. It must take a batch of images.
        runtime: "onnxruntime", "openvino", "tensorrt" or None.

    Raises:
        PsaqError: not a quantised model, or one that cannot be exported whole or has over 2 GiB there; an unknown
            runtime; a quantiser that ONNX has no operator for, an onnx package that is missing, or a file that cannot
            be written.
    """
    qmodel = innermost(qmodel)
    if getattr(qmodel, "psaq_recipe", None) is None:
        raise PsaqError(f"{type(qmodel).__name__}: is not quantised; export what psaq.quantize or psaq.load returned")
    if runtime not in TARGETS:
        raise PsaqError(f"runtime {runtime!r}: choose from {', '.join(str(name) for name in TARGETS if name)}")
    model = copied(qmodel).cpu().float().eval()
    narrow = _swap_layers(model, TARGETS[runtime])
    stop_watching(model)
    graph, narrow = _traced(model, qmodel, part, narrow)
    store_nibbles(graph.graph, narrow, TARGETS[runtime].widens_nibbles)
    _write(graph, Path(path))


def export_float_onnx(qmodel: nn.Module, path: Path | str, part: str | None = None) -> None:
    """The same architecture and weights with every quantisation point off, to be compared with in speed."""
    model = copied(qmodel).cpu().float().eval()
    for name in all_points(model):
        model.set_submodule(name, Point())
    stop_watching(model)
    graph, _ = _traced(model, qmodel, part, set())
    _write(graph, Path(path))


# Layers whose trace is the wanted graph --------------------------------------------------------------------------


class _Stored(torch.autograd.Function):
    """Integers times their scales, one for each place of an axis or for each group of places; in the graph,
    DequantizeLinear."""

    @staticmethod
    def forward(
        _: Any, integers: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int, group: int | None
    ) -> Tensor:
        if group is not None:
            return integers.float() * scale.repeat_interleave(group, axis)
        shape = [1] * integers.ndim
        shape[axis] = -1
        steps = integers.float() if zero_point is None else integers.float() - zero_point.float().view(shape)
        return steps * scale.view(shape)

    @staticmethod
    def symbolic(graph: Any, integers: Any, scale: Any, zero_point: Any, axis: int, group: int | None) -> Any:
        parameters = (scale,) if zero_point is None else (scale, zero_point)
        blocks = {} if group is None else {"block_size_i": group}
        real = graph.op("DequantizeLinear", integers, *parameters, axis_i=axis, **blocks)
        return real.setType(integers.type().with_dtype(torch.float32))


class _OnnxWeight(nn.Module):
    """Stored integers, and what they stand for."""

    def __init__(self, integers: Int8[Tensor, "..."], quantizer: AffineQuantizer, axis: int, target: Target):
        super().__init__()
        self.axis, self.group, scale = axis, quantizer.group, quantizer.scale
        if self.group is not None:
            self.axis, scale = _scales_of_groups(quantizer.scale, axis, integers.ndim)
            self.inputs = integers.shape[self.axis]
            integers = _filled(integers, self.axis, self.group)
        self.register_buffer("scale", scale)
        if quantizer.bits <= EXACT_BITS or target.int8_weights:
            self.register_buffer(_VALUES, integers)
            self.zero_point = None
        else:
            self.register_buffer(_VALUES, (integers.int() + UINT8_ZERO).to(torch.uint8))
            self.register_buffer("zero_point", torch.full_like(scale, UINT8_ZERO, dtype=torch.uint8))

    @property
    def dtype(self) -> torch.dtype:
        """Of what it stands for, which models ask of a layer's weight."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        """Likewise."""
        return torch.device("cpu")

    def forward(self, _: object = None) -> Float[Tensor, "..."]:
        real = _Stored.apply(self.integers, self.scale, self.zero_point, self.axis, self.group)
        whole = self.group is None or self.inputs % self.group == 0
        return real if whole else real.narrow(self.axis, 0, self.inputs)


def _scales_of_groups(scale: Float[Tensor, "outputs groups"], axis: int, dimensions: int) -> tuple[int, Tensor]:
    """The axis of the inputs, where ``axis`` is that of the outputs, and the scales in a weight's order."""
    if axis == 0:
        return 1, scale
    transposed = scale.T.contiguous()
    return axis - 1, transposed if dimensions == 2 else transposed[None]


def _filled(integers: Int8[Tensor, "..."], axis: int, group: int) -> Int8[Tensor, "..."]:
    """With zeros up to a whole number of groups: not every runtime takes a shorter one."""
    missing = [*integers.shape]
    missing[axis] = -missing[axis] % group
    return torch.cat([integers, integers.new_zeros(missing)], axis)


class _OnnxLinear(nn.Module):
    """The weight is stored as the matmul reads it, (inputs, outputs): runtimes fuse DequantizeLinear and MatMul.

    Where the input is on no uniform grid, the weight has an axis more: onnxruntime would fuse the two all the same,
    into a product that rounds its input to 8 bits in its own way.
    """

    def __init__(
        self,
        layer: QuantLayer,
        integers: Int8[Tensor, "outputs inputs"],
        quantizer: AffineQuantizer,
        target: Target,
    ):
        super().__init__()
        self.input, self.output, self.is_for_int8 = layer.input, layer.output, target.int8_activations
        self.weight = self._weight(layer, integers, quantizer, target)
        self.bias = _bias(layer, integers, quantizer)

    def _weight(self, layer: QuantLayer, integers: Tensor, quantizer: AffineQuantizer, target: Target) -> nn.Module:
        stored = integers.t().contiguous()
        as_matrix = quantizer.group is None or target.matrices_in_groups
        stored = stored if as_matrix and isinstance(layer.input, OnnxPoint) else stored[None]
        return _OnnxWeight(stored, quantizer, axis=stored.ndim - 1, target=target)

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        with out_of_sight():
            levels = _levels(self.input, x)
            # Of two matrices and a sum onnxruntime makes one operator before it looks for integers, and finds none.
            grows = levels.ndim == 2 and not self.is_for_int8
            y = self._product(levels.unsqueeze(1) if grows else levels)
            y = y if self.bias is None else y + self.bias
            return self.output(y.squeeze(1) if grows else y)

    def _product(self, levels: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        return levels @ self.weight()


class _OnnxGroupedLinear(_OnnxLinear):
    """By onnxruntime's product with groups of 4-bit weights."""

    def _weight(self, layer: QuantLayer, integers: Tensor, quantizer: AffineQuantizer, target: Target) -> nn.Module:
        return OnnxGroups(integers, quantizer)

    def _product(self, levels: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        return self.weight(levels)


def _levels(input: nn.Module, x: Tensor) -> Tensor:
    return input.around_zero(x) if isinstance(input, OnnxPoint) else input(x)


def _bias(layer: QuantLayer, integers: Int8[Tensor, "outputs ..."], quantizer: AffineQuantizer) -> nn.Parameter | None:
    """The layer's own, and what the middle of its input's range adds to every output."""
    if not isinstance(layer.input, OnnxPoint) or not layer.input.middle:
        return layer.bias  # type: ignore[return-value]
    sums = _sums(integers.flatten(1), quantizer) * layer.input.middle
    return nn.Parameter((sums if layer.bias is None else sums + layer.bias.double()).float())


def _sums(integers: Int8[Tensor, "outputs inputs"], quantizer: AffineQuantizer) -> Float[Tensor, "outputs"]:
    """Of what the integers stand for."""
    if quantizer.group is not None:
        return (integers.double() * quantizer.scales(integers.shape[1]).double()).sum(1)
    return integers.sum(1, dtype=torch.int32).double() * quantizer.scale.double()


class _OnnxPatchEmbedding(_OnnxLinear):
    """A patchwise convolution as a linear layer: onnxruntime multiplies integers there, and floats in a convolution."""

    def __init__(
        self, layer: QuantLayer, integers: Int8[Tensor, "outputs ..."], quantizer: AffineQuantizer, target: Target
    ):
        super().__init__(layer, integers.flatten(1), quantizer, target)
        self.pixels = layer._modules.get(PIXELS)
        self.patch = (layer.kernel_size[0], layer.kernel_size[1])

    def forward(self, x: Float[Tensor, "images inputs height width"]) -> Tensor:
        x = x if self.pixels is None else self.pixels(x)
        (ph, pw), (height, width) = self.patch, x.shape[-2:]
        if height % ph or width % pw:
            patches = flattened_patches(x, self.patch)
        else:  # without a slice that keeps all
            patches = rearrange(x, "b c (h ph) (w pw) -> b h w (c ph pw)", ph=ph, pw=pw)
        return rearrange(super().forward(patches), "b h w d -> b d h w")


class _OnnxPatchConvolution(nn.Module):
    """A patchwise convolution as it is."""

    def __init__(
        self, layer: QuantLayer, integers: Int8[Tensor, "outputs ..."], quantizer: AffineQuantizer, target: Target
    ):
        super().__init__()
        self.pixels, self.input, self.output = layer._modules.get(PIXELS), layer.input, layer.output
        self.stride = layer.stride
        self.weight = _OnnxWeight(integers, quantizer, axis=0, target=target)
        self.bias = _bias(layer, integers, quantizer)

    def forward(self, x: Float[Tensor, "images inputs height width"]) -> Tensor:
        with out_of_sight():
            x = x if self.pixels is None else self.pixels(x)
            return self.output(F.conv2d(_levels(self.input, x), self.weight(), self.bias, self.stride))


def _swap_layers(model: nn.Module, target: Target) -> set[str]:
    """Put traceable layers and points in place; returns the names of the weights that 4 bits hold."""
    swap_points(model, target)
    weights = {
        name.removesuffix(f".{WEIGHT}"): point
        for name, point in live_points(model).items()
        if name.endswith(f".{WEIGHT}")
    }
    lent, narrow = lent_layers(model), set()
    for name, quantizer in weights.items():
        assert isinstance(quantizer, AffineQuantizer)
        layer = _onnx_layer(name, model.get_submodule(name), quantizer, lent, target)
        model.set_submodule(name, layer)
        if quantizer.bits <= NIBBLE_BITS and not isinstance(layer, _OnnxGroupedLinear):
            narrow.add(f"{name}.{WEIGHT if isinstance(layer, QuantLayer) else 'weight'}.{_VALUES}")
    return narrow


def _onnx_layer(name: str, layer: nn.Module, quantizer: AffineQuantizer, lent: set[str], target: Target) -> nn.Module:
    assert isinstance(layer, QuantLayer)
    integers = quantizer.integers(layer.rows(layer.weight))
    if isinstance(layer, QuantLinear) and name not in lent:
        by_nibbles = target.groups_of_nibbles and quantizer.group is not None
        return (_OnnxGroupedLinear if by_nibbles else _OnnxLinear)(layer, integers, quantizer, target)
    if isinstance(layer, QuantConv) and is_patchwise(layer):
        convolves = target.convolutions and isinstance(layer.input, OnnxPoint)
        return (_OnnxPatchConvolution if convolves else _OnnxPatchEmbedding)(layer, integers, quantizer, target)
    layer.weight_quantizer = _OnnxWeight(integers, quantizer, axis=0, target=target)
    return layer


# Trace to file ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def _traced(
    model: nn.Module, qmodel: nn.Module, part: str | None, narrow: set[str]
) -> tuple["onnx.ModelProto", set[str]]:
    """The graph of the model or its part, and what the narrow weights are called there."""
    traced = OnnxPart(part_of(model, part))
    check_fits(traced.model)
    few, more = (_trace(traced, model, qmodel, count, any_number=False) for count in (FEW, MORE))
    graph = few if free_batch(few, more) else _traced_for_any_number(traced, model, qmodel)
    next(imported for imported in graph.opset_import if not imported.domain).version = OPSET
    prefix = f"{part}." if part else ""
    return graph, {f"model.{name.removeprefix(prefix)}" for name in narrow if name.startswith(prefix)}


def _traced_for_any_number(traced: OnnxPart, model: nn.Module, qmodel: nn.Module) -> "onnx.ModelProto":
    few, more = (_trace(traced, model, qmodel, count, any_number=True) for count in (FEW, MORE))
    if is_for_one_number(few, more):
        raise PsaqError(
            f"{type(model).__name__}: its forward takes the number of images for a constant, as len(x) is while it is "
            "traced; write x.shape[0], or export a part"
        )
    return few


def _trace(traced: OnnxPart, model: nn.Module, qmodel: nn.Module, count: int, any_number: bool) -> "onnx.ModelProto":
    """For so many images, or for any number by computing every shape."""
    onnx, config = _onnx(), data_config(qmodel)
    traced, model = copy.deepcopy((traced, model))  # the exporter folds norms into the weights that it is given
    images = taken_by(traced.model, model, torch.zeros(count, config.channels, *config.image_size))
    outputs = _output_names(traced(images))
    buffer = io.BytesIO()
    with warnings.catch_warnings(), WrittenOut(whole):
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
                custom_opsets={RUNTIME_DOMAIN: 1} if has_groups(traced) else None,
                dynamic_axes={name: {0: BATCH} for name in (_INPUT, *outputs)} if any_number else None,
            )
        except (RuntimeError, TypeError, ValueError, torch.onnx.errors.OnnxExporterError) as error:
            raise refused(model, error) from error
    return onnx.load_model_from_string(buffer.getvalue())


def _output_names(output: Tensor | tuple[Tensor, ...]) -> list[str]:
    return [_OUTPUT] if isinstance(output, Tensor) else [f"output{place}" for place in range(len(output))]


def _write(graph: "onnx.ModelProto", path: Path) -> None:
    onnx = _onnx()
    onnx.checker.check_model(graph, full_check=True)
    write_whole(path, lambda temporary: onnx.save_model(graph, temporary))


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise PsaqError('onnx is not installed; run pip install "psaq[onnx]"') from error
    return onnx

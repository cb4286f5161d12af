"""What ``psaq export`` does."""

from collections import Counter
from collections.abc import Iterator

from torch import nn

from psaq.choices import Runtime
from psaq.commands.export import Export
from psaq.commands.quantize import MODEL_FILE
from psaq.commands.work.calibration import check_crop, images_in
from psaq.images.batches import gaussian_images
from psaq.models.zoo import fresh_model
from psaq.quantization.checkpoint import load
from psaq.quantization.deployment.onnx_graph import EXACT_BITS, export_onnx
from psaq.quantization.deployment.runtimes import ONNXRUNTIME, OPENVINO, Images, installed
from psaq.quantization.deployment.verdict import Verdict, check_onnx
from psaq.quantization.model.points import WEIGHT, live_points
from psaq.quantization.quantizers.affine import AffineQuantizer
from psaq.quantization.quantizers.uneven import LogQuantizer, SplitQuantizer
from psaq.quantization.recipes import Recipe
from psaq.runs import device_name
from psaq_kernels.processor import BYTE, dot_products, largest_exact_weight


def run(options: Export) -> None:
    file = options.quantized / MODEL_FILE if options.quantized.is_dir() else options.quantized
    qmodel = load(file, None if options.model is None else fresh_model(options.model))
    images = _pictures(options, qmodel)
    export_onnx(qmodel, options.onnx, options.part, options.runtime)
    print(f"{options.onnx}: {options.onnx.stat().st_size / 1e6:.2f} MB")
    for remark in _remarks(qmodel, options.runtime):
        print(remark)
    for runtime in _runtimes_of(options.runtime):
        sizes = (options.batch_size, options.repeats)
        verdict = check_onnx(options.onnx, qmodel, images, *sizes, options.part, runtime, progress=True)
        print(_in_words(verdict, min(options.batch_size, verdict.images)))


def _runtimes_of(target: Runtime | None) -> list[Runtime]:
    """Where a file is run."""
    if target is None:
        if not installed():
            print("not run here: neither onnxruntime nor openvino is installed")
        return installed()
    own: Runtime = OPENVINO if target == OPENVINO else ONNXRUNTIME
    if own not in installed():
        print(f"not run here: {own} is not installed")
        return []
    return [own]


def _pictures(options: Export, qmodel: nn.Module) -> Images:
    check_crop(options.crop_pct, options.images, qmodel)
    if options.images is None:
        return gaussian_images(qmodel, options.num_images)
    return images_in(options.images, qmodel, options.num_images, options.crop_pct)


def _remarks(qmodel: nn.Module, runtime: Runtime | None) -> Iterator[str]:
    """What to know of a file before it is taken anywhere."""
    points = live_points(qmodel)
    weights = [point for name, point in points.items() if name.endswith(WEIGHT)]
    has_bytes = any(isinstance(weight, AffineQuantizer) and weight.bits > EXACT_BITS for weight in weights)
    if has_bytes and runtime in ("onnxruntime", "openvino") and largest_exact_weight() < BYTE:
        yield (f"sums overflow in {runtime} here: the file is for processors with 8-bit dot products")
    recipe: Recipe = qmodel.psaq_recipe  # type: ignore[assignment]
    adds_integers = runtime == "openvino" or (runtime != "tensorrt" and recipe.activations == 8)
    if recipe.scope == "all" and adds_integers:
        yield "sums are added in integers, and rounded once more; not with --scope matmul or linear"
    kinds = Counter(type(point) for point in points.values())
    if runtime is not None and kinds[LogQuantizer]:
        yield f"in float, for uneven steps: {kinds[LogQuantizer]} softmax outputs and the values that they weigh"
    if runtime is not None and kinds[SplitQuantizer]:
        yield f"256 even levels in place of uneven ones: {kinds[SplitQuantizer]} GELU outputs"
    if runtime is None and (uneven := kinds[LogQuantizer] + kinds[SplitQuantizer]):
        yield f"in float, for uneven steps of their levels: products of {uneven} points; none with --scope linear"


def _in_words(verdict: Verdict, batch: int) -> str:
    features = ", ".join(dot_products()) or "no 8-bit dot products"
    images = f"{verdict.images} images"
    same = (
        f"SQNR on {images}"
        if verdict.agreement is None
        else (f"same top-1 on {verdict.agreement:.1f} % of {images}, logit SQNR")
    )
    return (
        f"{verdict.runtime} beside the fake-quantised model: {same} {verdict.logit_sqnr:.1f} dB\n"
        f"{batch} images on {device_name('cpu')} ({features}): {verdict.milliseconds:.1f} ms, "
        f"{_beside_float(verdict)}; {verdict.products.integer} of {verdict.products.total} products in integers"
    )


def _beside_float(verdict: Verdict) -> str:
    taken = verdict.float_milliseconds
    if taken is None:
        return "float32 not run: too large for an ONNX file"
    return f"float32 {taken:.1f} ms, so {taken / verdict.milliseconds:.2f} times as fast"

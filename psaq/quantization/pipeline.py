"""From a trained model, a few images and a recipe to a fake-quantised model."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.images.batches import CalibrationImages, image_batches
from psaq.progress import progress_bar
from psaq.quantization.model.conversion import converted
from psaq.quantization.model.points import all_points, layer_of, points_in_scope, weight_points
from psaq.quantization.passes.collages import collages
from psaq.quantization.passes.flat_copies import flat_copies
from psaq.quantization.passes.folding import equalize_attention, fold_norms
from psaq.quantization.passes.in_order import calibrate_in_order
from psaq.quantization.passes.pixels import read_pixels
from psaq.quantization.passes.rotation import rotate_heads, rotate_streams
from psaq.quantization.quantizers.activations import activation_quantizer, observer
from psaq.quantization.quantizers.observers import MinMaxObserver
from psaq.quantization.quantizers.weights import bits_at, weight_quantizer
from psaq.quantization.recipes import Recipe


def quantize(
    model: nn.Module, images: CalibrationImages, recipe: Recipe, *, batch_size: int = 32, progress: bool = False
) -> nn.Module:
    """Quantise a vision transformer after training, with fixed ranges: in one pass over the images, or layer by layer
    where the recipe lets each make up for those before it.

    Args:
        model: a timm VisionTransformer, VisionTransformerDistilled or SwinTransformer; left untouched.
        images: what the activation ranges are read from, normalised as the model wants it: synthesised, real
            or noise, as a tensor (images, 3, height, width), `SyntheticImages` or batches.
        recipe: bits, scope and method.

    Returns:
        A copy of the model in evaluation mode that simulates b-bit integers in float32. Gradients pass straight
        through its quantisers.

    Raises:
        PsaqError: a module that psaq cannot walk; no images, or images of the wrong shape; NaN in weights, images
            or activations; an override that fits no layer.
    """
    qmodel, batches = prepared(model, images, recipe, batch_size)
    calibrate = calibrate_in_order if recipe.in_order else calibrate_at_once
    calibrate(qmodel, batches, recipe, progress)
    qmodel.psaq_recipe = recipe  # type: ignore[assignment]
    return qmodel


def prepared(
    model: nn.Module, images: CalibrationImages, recipe: Recipe, batch_size: int
) -> tuple[nn.Module, list[Tensor]]:
    """A copy of the model that computes the same, rescaled as the recipe asks, every point off; and the batches that
    it is to be calibrated on. Raises PsaqError as `quantize` does."""
    if not isinstance(recipe, Recipe):
        raise PsaqError(f"recipe {recipe!r}: must be a Recipe, such as psaq.Recipe.accurate(weights=4, activations=8)")
    check_finite(model)
    qmodel = converted(model)
    check_overrides(qmodel, recipe)
    originals = list(image_batches(images, batch_size, next(qmodel.parameters())))
    check_one_size(originals)
    run_once(qmodel, originals[0][:1])
    batches = [*originals, *collages(originals, recipe.collages), *flat_copies(originals, recipe.flat_copies)]
    if recipe.pixel_grid:
        read_pixels(qmodel, batches)
    if recipe.rotate != "none":
        rotate_streams(qmodel)
    if recipe.rotate == "all":
        rotate_heads(qmodel)
    if recipe.fold or recipe.centre:
        fold_norms(qmodel, batches, recipe.fold, recipe.centre)
    if recipe.equalize:
        equalize_attention(qmodel, batches, recipe.centre)
    return qmodel, batches


def calibrate_at_once(qmodel: nn.Module, batches: list[Tensor], recipe: Recipe, progress: bool) -> None:
    """Read every range in one full-precision pass, then quantise."""
    names = points_in_scope(all_points(qmodel), recipe.scope)
    observe(qmodel, {name: observer(name, recipe) for name in names}, batches, progress)
    for name in names:
        _, bits = bits_at(qmodel, name, recipe)
        qmodel.set_submodule(name, activation_quantizer(qmodel, name, recipe, bits))
    for name in weight_points(all_points(qmodel)):
        bits, _ = bits_at(qmodel, name, recipe)
        weight = qmodel.get_parameter(f"{layer_of(name)}.weight")
        qmodel.set_submodule(name, weight_quantizer(weight, bits, recipe))


@torch.no_grad()
def observe(
    qmodel: nn.Module, observers: Mapping[str, MinMaxObserver], batches: Iterable[Tensor], progress: bool = False
) -> None:
    """Leave at each named point its observer, which has then seen every image."""
    for name, watching in observers.items():
        qmodel.set_submodule(name, watching)
    for batch in progress_bar(batches, description="Calibrating", unit="batch", enabled=progress):
        qmodel(batch)


def check_one_size(batches: list[Tensor]) -> None:
    """Raises PsaqError where images differ in height or width: what is observed of them could not be put together."""
    sizes = sorted({tuple(batch.shape[2:]) for batch in batches})
    if len(sizes) > 1:
        raise PsaqError(f"calibration images of {' and '.join(map(str, sizes))} pixels: give all of them one size")


@torch.no_grad()
def run_once(qmodel: nn.Module, images: Tensor) -> None:
    """Raises PsaqError where the model does not take images of this size."""
    try:
        qmodel(images)
    except AssertionError as error:  # timm's own check of the size
        shape = tuple(images.shape)
        raise PsaqError(f"calibration images of shape {shape}: the model refuses them ({error})") from error


def check_overrides(qmodel: nn.Module, recipe: Recipe) -> None:
    """Raises PsaqError, naming the pattern, where an override fits no layer."""
    layers = {layer_of(point) for point in all_points(qmodel)}
    for pattern, _, _ in recipe.overrides:
        if not any(fnmatchcase(layer, pattern) for layer in layers):
            known = ", ".join(sorted(layer_of(point) for point in weight_points(all_points(qmodel)))[:4])
            raise PsaqError(f"override {pattern!r}: fits no layer of the model; its layers are {known}, …")


def check_finite(model: nn.Module) -> None:
    """Raises PsaqError, naming the tensor, where a weight is NaN or infinite."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise PsaqError(f"{name}: the model's weights hold NaN or infinity; load an undamaged checkpoint")

"""From a trained model, a few images and a recipe to a fake-quantised model."""

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.images.batches import CalibrationImages, batches_for
from psaq.images.plausible import check_enough, check_plausible
from psaq.models.calling import run
from psaq.models.data import find_data
from psaq.models.image_format import imagenet_format
from psaq.models.place import type_of
from psaq.models.sources import model_source
from psaq.models.trace import Trace
from psaq.models.wrappers import unwrapped
from psaq.progress import progress_bar
from psaq.quantization.hugging_face.saving import own_way_to_save
from psaq.quantization.model.conversion import converted, structure
from psaq.quantization.model.heads import plain_attention
from psaq.quantization.model.layers import QuantLayer
from psaq.quantization.model.points import all_points, layer_of, points_in_scope, some_of, weight_points
from psaq.quantization.model.streams import streams
from psaq.quantization.passes.collages import collages
from psaq.quantization.passes.flat_copies import flat_copies
from psaq.quantization.passes.folding import equalize_attention, fold_norms, foldable
from psaq.quantization.passes.in_order import calibrate_in_order
from psaq.quantization.passes.kept import kept
from psaq.quantization.passes.pixels import read_pixels
from psaq.quantization.passes.rotation import rotate_heads, rotate_stream
from psaq.quantization.quantizers.activations import activation_quantizer, observer
from psaq.quantization.quantizers.observers import MinMaxObserver
from psaq.quantization.quantizers.weights import group_of, is_in_groups, quantised_points, weight_quantizer
from psaq.quantization.recipes import Recipe
from psaq.suggestions import did_you_mean

_CHANGED = "the answer would have changed"


def quantize(
    model: nn.Module, images: CalibrationImages, recipe: Recipe, *, batch_size: int = 32, progress: bool = False
) -> nn.Module:
    """Quantise a vision transformer after training, with fixed ranges: in one pass over the images, or layer by layer
    where the recipe lets each make up for those before it.

    Args:
        model: any module that holds attention, whoever wrote it; left untouched.
        images: what the activation ranges are read from, normalised as the model wants it: synthesised, real
            or noise, as a tensor (images, channels, height, width), `SyntheticImages` or batches.
        recipe: bits, scope and method.
        progress: show a bar on standard error; by default nothing.

    Returns:
        A copy of the model in evaluation mode and in the model's type that simulates b-bit integers in float32.
        Gradients pass straight through its quantisers. What of the recipe the model's structure left no room for is
        what `psaq.left_out` says.

    Raises:
        PsaqError: a model without attention; no images, or images that it does not take; NaN in weights, images
            or activations; an override that fits no layer.
    """
    model = unwrapped(model)
    qmodel, batches = prepared(model, images, recipe, batch_size)
    calibrate = calibrate_in_order if recipe.in_order else calibrate_at_once
    calibrate(qmodel, batches, recipe, progress)
    qmodel.psaq_recipe = recipe  # type: ignore[assignment]
    return own_way_to_save(in_type_of(model, qmodel))


def left_out(qmodel: nn.Module) -> dict[str, str]:
    """The parts of its recipe that a quantised model does without, and why: its structure did not allow them.

    Raises:
        PsaqError: not what `psaq.quantize` or `psaq.load` returned.
    """
    if getattr(qmodel, "psaq_recipe", None) is None:
        raise PsaqError(f"{type(qmodel).__name__}: is not quantised; ask of what psaq.quantize or psaq.load returned")
    parts: Any = qmodel.psaq_left_out
    return dict(parts)


def prepared(
    model: nn.Module, images: CalibrationImages, recipe: Recipe, batch_size: int
) -> tuple[nn.Module, list[Tensor]]:
    """A copy of the model that computes the same, in float32 at least, rescaled as the recipe asks, every point off;
    and the batches that it is to be calibrated on. Raises PsaqError as `quantize` does."""
    check_recipe(recipe)
    check_finite(model)
    wide = torch.promote_types(type_of(model), torch.float32)
    originals = [batch.to(wide) for batch in batches_for(model, images, batch_size)]
    check_one_size(originals)
    check_plausible(model, originals)
    check_enough(sum(map(len, originals)), recipe.in_order)
    qmodel, trace = converted(model, originals[0])
    check_overrides(qmodel, recipe)
    batches = [*originals, *collages(originals, recipe.collages), *flat_copies(originals, recipe.flat_copies)]
    qmodel.psaq_left_out = {**_rescale(qmodel, trace, batches, recipe), **_ungrouped(qmodel, recipe)}  # type: ignore[assignment]
    _remember_origin(qmodel, model, originals[0])
    return qmodel, batches


@torch.no_grad()
def _rescale(qmodel: nn.Module, trace: Trace, batches: list[Tensor], recipe: Recipe) -> dict[str, str]:
    """Change parameters so that the model computes the same but quantises better. Returns the recipe's parts that it
    has no place for, and why."""
    missing: dict[str, str] = {}
    image = batches[0][:1]
    if recipe.pixel_grid and (why := read_pixels(qmodel, trace, batches)) is not None:
        missing["pixel grid"] = why
    if recipe.rotate != "none" and (why := _rotate_streams(qmodel, trace, image)) is not None:
        missing["rotated streams"] = why
    needs_heads = recipe.rotate == "all" or recipe.equalize
    attentions = plain_attention(qmodel, trace, image) if needs_heads else []
    if needs_heads and not attentions:
        reason = "between attention's projections and its products stands more than an arrangement"
        missing.update(dict.fromkeys(_attention_parts(recipe), reason))
    changes: dict[str, Callable[[], None]] = {}
    if recipe.rotate == "all":
        changes["rotated heads"] = lambda: rotate_heads(qmodel, attentions)
    if recipe.fold or recipe.centre:
        norms = foldable(qmodel, structure(qmodel).norms, structure(qmodel).ends)
        changes["folded norms"] = lambda: fold_norms(qmodel, norms, batches, recipe.fold, recipe.centre)
        if not norms:
            missing["folded norms"] = "no norm is read by linear layers alone"
    if recipe.equalize:
        changes["equalised attention"] = lambda: equalize_attention(qmodel, attentions, batches, recipe.centre)
    for part, change in changes.items():
        if part not in missing and not kept(qmodel, image, change):
            missing[part] = _CHANGED
    return missing


def _ungrouped(qmodel: nn.Module, recipe: Recipe) -> dict[str, str]:
    """Which weights have no groups although the recipe asks for them."""
    bits = {layer_of(name): bits for name, bits in quantised_points(qmodel, weight_points(qmodel), recipe).items()}
    without = [name for name in bits if not is_in_groups(qmodel.get_submodule(name), bits[name])]
    if recipe.group is None or not without:
        return {}
    return {
        "weights in groups": f"{some_of(without)}: convolutions, and more than 4 bits, have one scale an output channel"
    }


def _attention_parts(recipe: Recipe) -> list[str]:
    parts = {"rotated heads": recipe.rotate == "all", "equalised attention": recipe.equalize}
    return [part for part, asked_for in parts.items() if asked_for]


def _rotate_streams(qmodel: nn.Module, trace: Trace, image: Tensor) -> str | None:
    """Why no residual stream could be rotated, where none could."""
    draw = torch.Generator().manual_seed(0)
    found = streams(qmodel, trace, structure(qmodel))
    if not found:
        return "no residual stream is written by layers and read through norms alone"
    rotated = [kept(qmodel, image, partial(rotate_stream, qmodel, stream, draw)) for stream in found]
    return None if any(rotated) else _CHANGED


def calibrate_at_once(qmodel: nn.Module, batches: list[Tensor], recipe: Recipe, progress: bool) -> None:
    """Read every range in one full-precision pass, then quantise."""
    names = quantised_points(qmodel, points_in_scope(qmodel, recipe.scope), recipe)
    observe(qmodel, {name: observer(qmodel, name, recipe) for name in names}, batches, progress)
    for name, bits in names.items():
        qmodel.set_submodule(name, activation_quantizer(qmodel, name, recipe, bits))
    for name, bits in quantised_points(qmodel, weight_points(qmodel), recipe).items():
        layer = qmodel.get_submodule(layer_of(name))
        assert isinstance(layer, QuantLayer)
        group = group_of(layer, bits, recipe)
        qmodel.set_submodule(name, weight_quantizer(layer.rows(layer.weight), bits, recipe, group))


@torch.no_grad()
def observe(
    qmodel: nn.Module, observers: Mapping[str, MinMaxObserver], batches: Iterable[Tensor], progress: bool = False
) -> None:
    """Leave at each named point its observer, which has then seen every image."""
    for name, watching in observers.items():
        qmodel.set_submodule(name, watching)
    for batch in progress_bar(batches, description="Calibrating", unit="batch", enabled=progress):
        run(qmodel, batch)


def check_one_size(batches: list[Tensor]) -> None:
    """Raises PsaqError where images differ in height or width: what is observed of them could not be put together."""
    sizes = sorted({tuple(batch.shape[2:]) for batch in batches})
    if len(sizes) > 1:
        raise PsaqError(f"calibration images of {' and '.join(map(str, sizes))} pixels: give all of them one size")


def check_recipe(recipe: object) -> None:
    """Raises PsaqError for anything but a recipe."""
    if not isinstance(recipe, Recipe):
        raise PsaqError(f"recipe {recipe!r}: must be a Recipe, such as psaq.Recipe.accurate(weights=4, activations=8)")


def check_overrides(qmodel: nn.Module, recipe: Recipe) -> None:
    """Raises PsaqError, naming the pattern, where an override fits no layer."""
    layers = {layer_of(point) for point in all_points(qmodel)}
    for pattern, _, _ in recipe.overrides:
        if not any(fnmatchcase(layer, pattern) for layer in layers):
            near = did_you_mean(pattern, layers)
            known = ", ".join(structure(qmodel).layers[:4])
            raise PsaqError(f"override {pattern!r}: fits no layer of the model{near}; its layers are {known}, …")


def check_finite(model: nn.Module) -> None:
    """Raises PsaqError, naming the tensor, where a weight is NaN or infinite."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise PsaqError(f"{name}: the model's weights hold NaN or infinity; load an undamaged checkpoint")


def _remember_origin(qmodel: nn.Module, model: nn.Module, images: Tensor) -> None:
    """What the model can no longer say once it is quantised: how to build it, and what images it takes."""
    if (source := model_source(model)) is not None:
        qmodel.psaq_source = source  # type: ignore[assignment]
    size = (images.shape[-2], images.shape[-1])
    qmodel.psaq_data = find_data(model) or imagenet_format(size, images.shape[1])  # type: ignore[assignment]


def in_type_of(model: nn.Module, qmodel: nn.Module) -> nn.Module:
    """``qmodel``, which is quantised in float32 at least, in the type of the model that it was."""
    return qmodel if type_of(qmodel) == type_of(model) else qmodel.to(type_of(model))

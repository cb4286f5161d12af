"""From a trained model, a few images and a recipe to a fake-quantised model."""

import torch
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.images.batches import CalibrationImages, image_batches
from psaq.progress import progress_bar
from psaq.quantization.affine import asymmetric_per_tensor, symmetric_per_channel
from psaq.quantization.convert import converted
from psaq.quantization.observers import MinMaxObserver
from psaq.quantization.points import all_points, points_in_scope, weight_points
from psaq.quantization.recipes import Recipe


def quantize(
    model: nn.Module, images: CalibrationImages, recipe: Recipe, *, batch_size: int = 32, progress: bool = False
) -> nn.Module:
    """Quantise a vision transformer after training: one pass over the images, then fixed ranges.

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
            or activations.
    """
    check_finite(model)
    qmodel = converted(model)
    names = points_in_scope(all_points(qmodel), recipe.scope)
    observe(qmodel, names, images, batch_size, progress)
    for name in names:
        low, high = qmodel.get_submodule(name).range(name)  # type: ignore[operator]
        quantizer = asymmetric_per_tensor(low, high, recipe.activations, include_zero=not recipe.faithful)
        qmodel.set_submodule(name, quantizer)
    for name in weight_points(all_points(qmodel)):
        weight = qmodel.get_parameter(f"{name.rpartition('.')[0]}.weight")
        qmodel.set_submodule(name, symmetric_per_channel(weight, recipe.weights))
    qmodel.psaq_recipe = recipe  # type: ignore[assignment]
    return qmodel


@torch.no_grad()
def observe(
    qmodel: nn.Module, names: list[str], images: CalibrationImages, batch_size: int = 32, progress: bool = False
) -> None:
    """Leave a min-max observer at each named point that has seen every image."""
    for name in names:
        qmodel.set_submodule(name, MinMaxObserver())
    device = next(qmodel.parameters()).device
    batches = image_batches(images, batch_size, device)
    for batch in progress_bar(batches, description="Calibrating", unit="batch", enabled=progress):
        _run(qmodel, batch)


def check_finite(model: nn.Module) -> None:
    """Raises PsaqError, naming the tensor, where a weight is NaN or infinite."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise PsaqError(f"{name}: the model's weights hold NaN or infinity; load an undamaged checkpoint")


def _run(qmodel: nn.Module, batch: Tensor) -> None:
    try:
        qmodel(batch)
    except AssertionError as error:  # timm's own check of the size
        shape = tuple(batch.shape)
        raise PsaqError(f"calibration images of shape {shape}: the model refuses them ({error})") from error

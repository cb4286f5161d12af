"""What torchvision's models say of themselves: the images they take and the classes they know."""

from torch import nn
from torchvision.models import detection
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from psaq.models.image_format import DataConfig, Values, imagenet_format, input_channels, square

DETECTORS = (detection.FasterRCNN.__base__, detection.FCOS, detection.RetinaNet, detection.ssd.SSD)
"""The base classes of all its detectors: a list of images in, a dict of boxes for each out."""

_TRAINED_AT = 224


def torchvision_data(model: nn.Module) -> DataConfig | None:
    """Size and normalisation of a torchvision model; None for any other module."""
    if isinstance(transform := getattr(model, "transform", None), GeneralizedRCNNTransform):
        return _detector_data(transform)
    if not type(model).__module__.startswith("torchvision.models."):
        return None
    size = square(getattr(model, "image_size", _TRAINED_AT))
    return imagenet_format(size, input_channels(model), interpolation="bilinear")


def own_statistics(model: nn.Module) -> tuple[Values, Values] | None:
    """Mean and std by which a detector of torchvision's normalises its images itself; None of any other module."""
    transform = getattr(model, "transform", None)
    if not isinstance(transform, GeneralizedRCNNTransform):
        return None
    return tuple(map(float, transform.image_mean)), tuple(map(float, transform.image_std))


def torchvision_classes(model: nn.Module) -> int | None:
    """The classes of a torchvision classifier: what its last linear layer gives; None for any other module."""
    family = type(model).__module__.removeprefix("torchvision.models.")
    if family == type(model).__module__ or "." in family:
        return None
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return linears[-1].out_features if linears else None


def _detector_data(transform: GeneralizedRCNNTransform) -> DataConfig:
    """A detector normalises its images itself, and resizes them: the largest that it leaves as they are."""
    fixed = transform.fixed_size
    height, width = (transform.min_size[-1], transform.max_size) if fixed is None else (fixed[1], fixed[0])
    channels = len(transform.image_mean)
    return DataConfig((height, width), (0.0,) * channels, (1.0,) * channels, "bilinear", crop_pct=1.0)

"""What torchvision's models say of themselves: the images they take and the classes they know."""

from itertools import chain

from torch import nn
from torchvision import models
from torchvision.models import detection
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms._presets import ImageClassification

from psaq.models.image_format import DataConfig, Values, fitted, imagenet_format, input_channels, square

DETECTORS = (detection.FasterRCNN.__base__, detection.FCOS, detection.RetinaNet, detection.ssd.SSD)
"""The base classes of all its detectors: a list of images in, a dict of boxes for each out."""

_TRAINED_AT = 224
_PACKAGE = "torchvision.models."
_HEADS = ("heads", "head", "classifier", "fc")
"""What its models call what tells classes apart."""


def torchvision_data(model: nn.Module) -> DataConfig | None:
    """Size and normalisation of a torchvision model; None for any other module."""
    if isinstance(transform := getattr(model, "transform", None), GeneralizedRCNNTransform):
        return _detector_data(transform)
    if not is_torchvision(model):
        return None
    channels = input_channels(model)
    if (published := _published(model)) is not None:
        return _as_published(published, channels)
    return imagenet_format(square(getattr(model, "image_size", _TRAINED_AT)), channels, interpolation="bilinear")


def own_statistics(model: nn.Module) -> tuple[Values, Values] | None:
    """Mean and std by which a detector of torchvision's normalises its images itself; None of any other module."""
    transform = getattr(model, "transform", None)
    if not isinstance(transform, GeneralizedRCNNTransform):
        return None
    return tuple(map(float, transform.image_mean)), tuple(map(float, transform.image_std))


def is_torchvision(model: nn.Module) -> bool:
    """Whether a module is a whole model of torchvision's, or of a class that derives from one: it has a head, which
    its building blocks, of which one's own models are made, have not."""
    return bool(_families(model)) and _head(model) is not None


def torchvision_classes(model: nn.Module) -> int | None:
    """The classes of a torchvision classifier: what the last linear layer of its head gives; None where there is none,
    and for any other module."""
    classifies = any("." not in family for family in _families(model))
    head = _last_linear(_head(model)) if classifies else None
    return None if head is None else head.out_features


def _published(model: nn.Module) -> ImageClassification | None:
    """How the images were made for the first weights that are published of a classifier of this family and of as many
    parameters, those of the classes apart; a module does not tell which weights it holds."""
    head = _last_linear(_head(model))
    if head is None:
        return None
    of_a_class = head.in_features + (head.bias is not None)
    others = sum(parameter.numel() for parameter in model.parameters()) - of_a_class * head.out_features
    known = map(models.get_model_weights, models.list_models(module=models))
    of_family = (kind for kind in known if kind.__module__.removeprefix(_PACKAGE) in _families(model))
    for weights in chain.from_iterable(of_family):
        if weights.meta["num_params"] - of_a_class * len(weights.meta["categories"]) == others:
            return weights.transforms()
    return None


def _as_published(images: ImageClassification, channels: int) -> DataConfig:
    (size,), (resized,) = images.crop_size, images.resize_size
    mean, std = fitted(images.mean, channels), fitted(images.std, channels)
    return DataConfig(square(size), mean, std, images.interpolation.value, crop_pct=size / resized)


def _families(model: nn.Module) -> list[str]:
    """The modules of torchvision that a model's class, and those that it derives from, are defined in."""
    modules = [kind.__module__ for kind in type(model).__mro__]
    return [module.removeprefix(_PACKAGE) for module in modules if module.startswith(_PACKAGE)]


def _head(model: nn.Module) -> nn.Module | None:
    return next((head for name in _HEADS if isinstance(head := getattr(model, name, None), nn.Module)), None)


def _last_linear(head: nn.Module | None) -> nn.Linear | None:
    layers = [] if head is None else [module for module in head.modules() if isinstance(module, nn.Linear)]
    return layers[-1] if layers else None


def _detector_data(transform: GeneralizedRCNNTransform) -> DataConfig:
    """A detector normalises its images itself, and resizes them: the largest that it leaves as they are."""
    fixed = transform.fixed_size
    height, width = (transform.min_size[-1], transform.max_size) if fixed is None else (fixed[1], fixed[0])
    channels = len(transform.image_mean)
    return DataConfig((height, width), (0.0,) * channels, (1.0,) * channels, "bilinear", crop_pct=1.0)

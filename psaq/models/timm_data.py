"""What images a timm model takes, from its own configuration."""

from timm.data import resolve_model_data_config
from torch import nn

from psaq.models.image_format import DataConfig, Size, fitted, input_channels, square


def timm_data(model: nn.Module) -> DataConfig | None:
    """The preprocessing that a timm model was trained with; None for any other module."""
    published = getattr(model, "pretrained_cfg", None)
    if not published:
        return None
    config = resolve_model_data_config(model)
    channels = _channels(model, published)
    return DataConfig(
        image_size=built_for(model) or square(config["input_size"][-2:]),
        mean=fitted(config["mean"], channels),
        std=fitted(config["std"], channels),
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
    )


def built_for(model: nn.Module) -> Size | None:
    """The size that a model was built for: its configuration stays the published one, but its layers know."""
    for module in model.modules():
        size = getattr(module, "img_size", None)
        if isinstance(size, int) or (isinstance(size, tuple | list) and len(size) == 2):
            return square(size)
    source = getattr(model, "psaq_source", None)
    size = None if source is None else source.options.get("img_size")
    return None if size is None else square(size)


def _channels(model: nn.Module, published: dict) -> int:
    """The first convolution's channels, where the configuration says which it is; it need not be the first built."""
    stated = (published.get("input_size") or (3,))[0]
    first = published.get("first_conv") or ()
    names = (first,) if isinstance(first, str) else first
    modules = dict(model.named_modules())
    found = (input_channels(modules[name], 0) for name in names if name in modules)
    return next(filter(None, found), None) or input_channels(model, stated)

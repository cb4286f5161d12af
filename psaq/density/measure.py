"""From a model and images to density curves."""

import re
from collections.abc import Iterator, Mapping, Sequence
from math import ceil

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psaq.choices import Heads
from psaq.density.curves import DensityCurves
from psaq.errors import PsaqError
from psaq.images.batches import CalibrationImages, batches_for
from psaq.images.synthetic import SyntheticImages
from psaq.models.calling import run
from psaq.models.features import record_patch_features
from psaq.models.wrappers import unwrapped
from psaq.models.zoo import data_config
from psaq.progress import progress_bar
from psaq_kernels import density_entropy, similarity_density

TAIL = 4
"""The grid reaches this many bandwidths beyond [-1, 1]: the kernel around a similarity of 1 is not cut off."""


def patch_similarity_density(
    model: nn.Module,
    images: CalibrationImages | Mapping[str, CalibrationImages],
    *,
    layers: Sequence[int] | None = None,
    bandwidth: float = 0.01,
    grid_points: int | None = None,
    heads: Heads = "mean",
    batch_size: int = 8,
    backend: str | None = None,
    progress: bool = False,
) -> DensityCurves:
    """The density of patch similarity Γ in each layer of a model (Li et al. 2022, equations 1 to 3).

    Args:
        model: a vision transformer as `load_model` gives it.
        images: normalised for the model; or several sets by name, {"noise": …, "real": …, "generated": …}. One
            without a name is called "generated" where psaq synthesised it, else "images".
        layers: which blocks, counted from 1 as in the figure; all of them where None.
        bandwidth: the Gaussian kernel's standard deviation, in units of similarity.
        grid_points: where the density is evaluated; by default every half bandwidth.
        heads: "mean" averages a patch's feature over the heads, as the authors do; "separate" compares patches
            head by head and pools the similarities.
        backend: "triton" or "torch"; automatic where None.
        progress: show a bar on standard error; by default nothing.

    Raises:
        PsaqError: no image or one that does not fit the model, a layer out of range, a grid too coarse for the
            bandwidth, or a model without self-attention.
    """
    model = unwrapped(model)
    sources = images if isinstance(images, Mapping) else {_default_name(images): images}
    if not sources:
        raise PsaqError("images: there is no set of images; give at least one")
    grid = similarity_grid(bandwidth, grid_points)
    density: dict[str, Float[Tensor, "layers images grid"]] = {}
    with record_patch_features(model, heads) as recorder, torch.no_grad():
        names = [site.attention for site in recorder.sites]
        chosen = choose_layers(layers, len(names))
        for source, source_images in sources.items():
            batches = _checked_batches(source, source_images, model, batch_size)
            parts = []
            total = _batch_count(source_images, batch_size)
            for batch in progress_bar(batches, description=source, total=total, unit="batch", enabled=progress):
                run(recorder.model, batch)
                features = [recorder.features[index] for index in chosen]
                parts.append(similarity_density(features, grid.to(batch.device), bandwidth, backend).cpu())
            density[source] = torch.cat(parts, dim=1)
    return DensityCurves(
        grid=grid.numpy(),
        layers=tuple(layer_label(names[index], index) for index in chosen),
        density={source: values.numpy() for source, values in density.items()},
        entropy={source: density_entropy(values, grid).numpy() for source, values in density.items()},
        patches=tuple(feature.shape[2] for feature in features),
        windows=tuple(feature.shape[1] for feature in features),
        bandwidth=bandwidth,
    )


def similarity_grid(bandwidth: float, points: int | None = None) -> Float[Tensor, "grid"]:
    """Evenly spaced similarities that hold all of the density: from −1 − 4 h to 1 + 4 h.

    Raises:
        PsaqError: the bandwidth is not within [0.002, 0.2], or the spacing would exceed it, where the entropy
            integral is no longer right.
    """
    if not 0.002 <= bandwidth <= 0.2:
        raise PsaqError(f"bandwidth {bandwidth}: must be within [0.002, 0.2]")
    reach = 1 + TAIL * bandwidth
    fewest = ceil(2 * reach / bandwidth) + 1
    points = points or 2 * fewest - 1
    if points < fewest:
        raise PsaqError(
            f"grid of {points} points: too coarse for bandwidth {bandwidth}, whose entropy needs at least {fewest}"
        )
    return torch.linspace(-reach, reach, points)


def layer_label(name: str, index: int) -> str:
    """What a block is called in a figure: "block 3", or "stage 2 · block 1" where the model has stages."""
    numbers = [int(number) + 1 for number in re.findall(r"(?<=\.)\d+(?=\.)", f".{name}.")]
    if len(numbers) == 2:
        return f"stage {numbers[0]} · block {numbers[1]}"
    return f"block {numbers[0] if len(numbers) == 1 else index + 1}"


def check_measurable(model: nn.Module, layers: Sequence[int] | None, bandwidth: float, grid_points: int | None) -> None:
    """Raise PsaqError as `patch_similarity_density` does for whatever is wrong with any images."""
    similarity_grid(bandwidth, grid_points)
    with record_patch_features(unwrapped(model)) as recorder:
        choose_layers(layers, len(recorder.sites))


def choose_layers(layers: Sequence[int] | None, count: int) -> list[int]:
    """Positions of the layers counted from 1, of ``count``; all where None. Raises PsaqError out of range."""
    if layers is None:
        return list(range(count))
    wrong = [layer for layer in layers if not 1 <= layer <= count]
    if wrong or not layers:
        raise PsaqError(f"layers {list(layers)}: the model has {count}, counted from 1 to {count}; choose among them")
    return [layer - 1 for layer in layers]


def _default_name(images: CalibrationImages) -> str:
    return "generated" if isinstance(images, SyntheticImages) else "images"


def _batch_count(images: CalibrationImages, batch_size: int) -> int | None:
    return ceil(len(images) / batch_size) if isinstance(images, Tensor | SyntheticImages) else None


def _checked_batches(
    source: str, images: CalibrationImages, model: nn.Module, batch_size: int
) -> Iterator[Float[Tensor, "images channels height width"]]:
    size = data_config(model).image_size
    for batch in batches_for(model, images, batch_size):
        if tuple(batch.shape[2:]) != size:
            found = "×".join(map(str, batch.shape[2:]))
            raise PsaqError(f"{source} images are {found} pixels, the model takes {size[0]}×{size[1]}; resize them")
        yield batch

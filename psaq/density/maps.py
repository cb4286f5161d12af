"""Γ of one image, and one patch's similarity laid out over the image, in each layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from psaq.density.measure import choose_layers, layer_label
from psaq.errors import PsaqError
from psaq.models.calling import run
from psaq.models.features import FeatureSite, record_patch_features


@dataclass(frozen=True)
class SimilarityMap:
    """One layer's patch similarities of one image.

    Attributes:
        similarity: Γ between the patches that the layer compares with the picked one, itself included.
        over_image: the picked patch's similarity to each patch, laid out as the image is; NaN where the layer does
            not compare them (another window of Swin).
        patch: the picked patch in ``over_image``, (row, column).
    """

    layer: str
    similarity: Float[Tensor, "patches patches"]
    over_image: Float[Tensor, "rows columns"]
    patch: tuple[int, int]


@torch.no_grad()
def similarity_maps(
    model: nn.Module,
    image: Float[Tensor, "3 height width"],
    at: tuple[float, float] = (0.5, 0.5),
    layers: Sequence[int] | None = None,
) -> list[SimilarityMap]:
    """How similar the patches of an image are, and where the ones like the patch at a given point lie.

    Args:
        image: normalised for the model.
        at: the point, (x, y) as shares of width and height, in [0, 1).
        layers: blocks counted from 1; all of them where None.

    Raises:
        PsaqError: a point beyond the image, a layer out of range, or a model whose patches do not tile the image.
    """
    if not all(0 <= share < 1 for share in at):
        raise PsaqError(f"point {at}: x and y are shares of the image, from 0 to below 1")
    with record_patch_features(model) as recorder:
        run(recorder.model, image[None].to(next(model.parameters())))
    return [
        _map_of(
            layer_label(recorder.sites[index].attention, index),
            recorder.features[index][0].float().cpu(),
            _tiling(model, recorder.sites[index], recorder.features[index].shape[1:3], image.shape[1:]),
            at,
        )
        for index in choose_layers(layers, len(recorder.sites))
    ]


def _map_of(
    label: str,
    features: Float[Tensor, "windows patches channels"],
    tiling: Int[Tensor, "rows columns"],
    at: tuple[float, float],
) -> SimilarityMap:
    rows, columns = tiling.shape
    if int(tiling.max()) >= features.shape[0] * features.shape[1]:
        raise PsaqError(f"{label}: has {features.shape[1]} patches, which do not tile an image of {rows}×{columns}")
    patch = (int(at[1] * rows), int(at[0] * columns))
    window, place = divmod(int(tiling[patch]), features.shape[1])
    unit = torch.nn.functional.normalize(features[window], dim=-1)
    similarity = unit @ unit.mT
    everywhere = torch.full(features.shape[:2], torch.nan)
    everywhere[window] = similarity[place]
    return SimilarityMap(label, similarity, everywhere.flatten()[tiling], patch)


def _tiling(
    model: Any, site: FeatureSite, features: Sequence[int], image: Sequence[int]
) -> Int[Tensor, "rows columns"]:
    """For each place of a layer's patches over the image, the position of its feature, windows in order.

    Args:
        features: how many windows, and patches in each.
        image: height and width in pixels.
    """
    windows, patches = features
    block = model.get_submodule(site.attention.rpartition(".")[0])
    if all(hasattr(block, name) for name in ("input_resolution", "window_size", "shift_size")):
        return _window_tiling(block.input_resolution, block.window_size, block.shift_size)
    rows = max(1, round((patches * image[0] / image[1]) ** 0.5))
    if windows > 1 or rows * (patches // rows) != patches:
        raise PsaqError(
            f"{site.attention}: it is not known where its {windows} × {patches} patches lie in the image; choose "
            "layers in which all patches attend to each other"
        )
    return torch.arange(patches).reshape(rows, patches // rows)


def _window_tiling(
    resolution: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]
) -> Int[Tensor, "rows columns"]:
    """Swin: the patches are rolled by the shift, padded at the end to whole windows, and cut into windows."""
    (rows, columns), (height, width) = resolution, window
    row = ((torch.arange(rows) - shift[0]) % rows)[:, None]
    column = ((torch.arange(columns) - shift[1]) % columns)[None]
    windows = (row // height) * -(-columns // width) + column // width
    return windows * height * width + (row % height) * width + column % width

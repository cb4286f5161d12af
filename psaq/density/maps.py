"""Γ of one image, and one patch's similarity laid out over the image, in each layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from psaq.density.measure import choose_layers, layer_label
from psaq.density.places import patch_places, tiling
from psaq.errors import PsaqError
from psaq.models.calling import run
from psaq.models.features import record_patch_features
from psaq.models.wrappers import unwrapped


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
    image: Float[Tensor, "channels height width"],
    at: tuple[float, float] = (0.5, 0.5),
    layers: Sequence[int] | None = None,
) -> list[SimilarityMap]:
    """How similar the patches of an image are, and where the ones like the patch at a given point lie.

    Args:
        image: normalised for the model.
        at: the point, (x, y) as shares of width and height, in [0, 1).
        layers: blocks counted from 1; all of them where None.

    Raises:
        PsaqError: a deployed model, a point beyond the image, a layer out of range, or one whose patches do not lie in
            a grid over it.
    """
    model = unwrapped(model)
    if hasattr(model, "psaq_body"):
        raise PsaqError(f"{type(model).__name__}: does not say where its patches lie; give the quantised model")
    if not all(0 <= share < 1 for share in at):
        raise PsaqError(f"point {at}: x and y are shares of the image, from 0 to below 1")
    image = image.to(next(model.parameters()))
    with record_patch_features(model, images=image[None]) as recorder:
        run(recorder.model, image[None])
    places = patch_places(model, image)
    return [
        _map_of(
            layer_label(recorder.sites[index].attention, index),
            recorder.features[index][0].float().cpu(),
            tiling(places[index]),
            at,
        )
        for index in choose_layers(layers, len(recorder.sites))
    ]


def _map_of(
    label: str,
    features: Float[Tensor, "windows patches channels"],
    grid: Int[Tensor, "rows columns"],
    at: tuple[float, float],
) -> SimilarityMap:
    rows, columns = grid.shape
    patch = (int(at[1] * rows), int(at[0] * columns))
    window, place = divmod(int(grid[patch]), features.shape[1])
    unit = torch.nn.functional.normalize(features[window], dim=-1)
    similarity = unit @ unit.mT
    everywhere = torch.full(features.shape[:2], torch.nan)
    everywhere[window] = similarity[place]
    return SimilarityMap(label, similarity, everywhere.flatten()[grid], patch)

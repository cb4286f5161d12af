"""Similarity maps: Γ of the right window, laid back over the image where the patches came from."""

import pytest
import torch

from psaq import Recipe, deploy, quantize
from psaq.density.maps import similarity_maps
from psaq.errors import PsaqError
from psaq.models.features import patch_features
from psaq.tasks.classification import logit_sqnr


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(2))


def test_vit_map_is_the_row_of_the_picked_patch(vit, image):
    maps = similarity_maps(vit, image, at=(0.3, 0.8))
    with torch.no_grad():
        features = patch_features(vit, image[None])
    assert [layer.layer for layer in maps] == ["block 1", "block 2"]
    for layer, feature in zip(maps, features, strict=True):
        unit = torch.nn.functional.normalize(feature[0, 0], dim=-1)
        gamma = unit @ unit.T
        assert layer.patch == (3, 1)
        torch.testing.assert_close(layer.similarity, gamma)
        torch.testing.assert_close(layer.over_image, gamma[3 * 4 + 1].reshape(4, 4))


def test_swin_map_is_blank_beyond_the_window(swin, image):
    maps = similarity_maps(swin, image, at=(0.99, 0.0), layers=[1, 3])
    first, third = maps
    assert first.over_image.shape == (16, 16)
    assert first.patch == (0, 15)
    known = torch.zeros(16, 16, dtype=torch.bool)
    known[:4, 12:] = True
    torch.testing.assert_close(~first.over_image.isnan(), known)
    assert third.over_image.shape == (8, 8)
    assert first.similarity.shape == third.similarity.shape == (16, 16)


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_the_picked_patch_is_like_itself(name, image, request):
    for layer in similarity_maps(request.getfixturevalue(name), image, at=(0.6, 0.4)):
        assert float(layer.over_image[layer.patch]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_a_quantised_model_has_maps_of_the_same_places(name, image, request):
    model = request.getfixturevalue(name)
    qmodel = quantize(model, image[None], Recipe.paper(8, 8))
    for quantised, original in zip(similarity_maps(qmodel, image), similarity_maps(model, image), strict=True):
        torch.testing.assert_close(quantised.over_image.isnan(), original.over_image.isnan())
        assert logit_sqnr(quantised.over_image.nan_to_num(), original.over_image.nan_to_num()) > 20
    with pytest.raises(PsaqError, match="give the quantised model"):
        similarity_maps(deploy(qmodel), image)


@pytest.mark.parametrize("at", [(1.0, 0.5), (-0.1, 0.5), (0.5, 2.0)])
def test_a_point_beyond_the_image_is_refused(vit, image, at):
    with pytest.raises(PsaqError, match="shares of the image"):
        similarity_maps(vit, image, at=at)


def test_a_layer_out_of_range_is_named(vit, image):
    with pytest.raises(PsaqError, match="from 1 to 2"):
        similarity_maps(vit, image, layers=[3])

"""The losses against float64 oracles written from the equations."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psaq.losses import (
    eager_entropy,
    patch_similarity_entropy,
    pixel_class_loss,
    reference_smoothness_loss,
    similarity_grid,
    smoothness_loss,
    total_variation,
)


def entropy_oracle(features: torch.Tensor, bandwidth: float, points: torch.Tensor) -> torch.Tensor:
    """Equations 1–3 of Li et al. 2022, literally, in float64, floor 1e-4 before the logarithm."""
    features = features.double()
    unit = features / features.norm(dim=-1, keepdim=True)
    samples = (unit @ unit.transpose(-1, -2)).flatten(1)
    kernel = torch.exp(-0.5 * ((points.double() - samples[..., None]) / bandwidth) ** 2)
    density = kernel.mean(1) / (bandwidth * math.sqrt(2 * math.pi)) + 1e-4
    return torch.trapezoid(-density * density.log(), points.double(), dim=-1)


def bimodal_features(images: int = 2, windows: int = 1, patches: int = 24) -> torch.Tensor:
    torch.manual_seed(0)
    centres = torch.randn(2, 16)
    return centres[torch.randint(2, (images, windows, patches))] + 0.3 * torch.randn(images, windows, patches, 16)


def test_entropy_is_the_integral_to_1e_4():
    layers = [bimodal_features(), bimodal_features(windows=3)]
    fine = torch.linspace(-1.2, 1.2, 20001)
    expected = torch.stack([entropy_oracle(layer, 0.01, fine) for layer in layers])
    # The floor adds its own 1e-4·log(1e-4) over the part of the fine grid that the loss's grid leaves out.
    points = similarity_grid(0.01)
    extra = 1e-4 * math.log(1e-4) * (2.4 - float(points[-1] - points[0]))
    found = patch_similarity_entropy(layers, 0.01).double()
    torch.testing.assert_close(found, expected + extra, rtol=0, atol=1e-4)


def test_reference_grid_is_ten_points_between_the_extremes():
    layer = bimodal_features()
    unit = torch.nn.functional.normalize(layer.double(), dim=-1)
    similarity = unit @ unit.transpose(-1, -2)
    points = torch.linspace(float(similarity.min()), float(similarity.max()), 10)
    found = patch_similarity_entropy([layer], 0.01, grid="reference")[0]
    torch.testing.assert_close(found.double(), entropy_oracle(layer, 0.01, points), rtol=1e-3, atol=1e-3)


def test_reference_grid_under_resolves_a_bimodal_density():
    layers = [bimodal_features()]
    fine, coarse = patch_similarity_entropy(layers), patch_similarity_entropy(layers, grid="reference")
    assert (fine - coarse).abs().max() > 0.1


@given(bandwidth=st.floats(0.002, 0.2))
@settings(deadline=None, max_examples=50)
def test_grid_spacing_never_exceeds_the_bandwidth(bandwidth):
    points = similarity_grid(bandwidth).double()
    assert points.diff().max() <= bandwidth * (1 + 1e-3)
    assert points[0] <= -1 - 4.9 * bandwidth
    assert points[-1] >= 1 + 4.9 * bandwidth


def test_alike_patches_have_less_entropy_than_diverse_ones():
    alike = torch.ones(1, 1, 24, 16) + 0.01 * torch.randn(1, 1, 24, 16)
    low, high = patch_similarity_entropy([alike]), patch_similarity_entropy([bimodal_features(1)])
    assert low.item() < high.item() - 1


def test_total_variation_counts_four_directions():
    image = torch.zeros(1, 3, 3, 3)
    image[0, 0, 1, 1] = 1.0
    # The bright pixel differs from two neighbours along each direction: four norms of √2.
    torch.testing.assert_close(total_variation(image), torch.tensor([4 * math.sqrt(2)]))


@given(copies=st.integers(1, 5))
@settings(deadline=None, max_examples=5)
def test_smoothness_does_not_depend_on_the_batch(copies):
    image = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    alone, together = smoothness_loss(image, 5.0), smoothness_loss(image.repeat(copies, 1, 1, 1), 5.0)
    torch.testing.assert_close(alone, together)


def test_smoothness_equals_the_authors_on_32_like_images():
    images = torch.randn(1, 3, 8, 8).repeat(32, 1, 1, 1).requires_grad_()
    ours, theirs = smoothness_loss(images, 100 / math.sqrt(32)), reference_smoothness_loss(images, 100.0)
    torch.testing.assert_close(ours, theirs)
    (our_gradient,) = torch.autograd.grad(ours, images)
    (their_gradient,) = torch.autograd.grad(theirs, images)
    torch.testing.assert_close(our_gradient, their_gradient)


@pytest.mark.parametrize("loss", [smoothness_loss, reference_smoothness_loss])
def test_a_flat_image_has_a_finite_gradient(loss):
    flat = torch.zeros(2, 3, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(flat, 5.0), flat)
    assert torch.isfinite(gradient).all()


def test_the_eager_loss_is_the_same_loss():
    torch.manual_seed(0)
    layer = torch.randn(3, 2, 9, 16)
    expected = patch_similarity_entropy([layer], grid="reference").mean()
    torch.testing.assert_close(eager_entropy(layer), expected, rtol=1e-3, atol=1e-3)


def test_pixel_class_loss_is_mutual_information_negated():
    joint = torch.rand(2, 5, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    probabilities = joint / joint.sum(1, keepdim=True)
    pixels = probabilities.movedim(1, -1).reshape(-1, 5)
    each = (pixels * (pixels / pixels.mean(0)).log()).sum(1)  # Kullback–Leibler divergence from the mean of all pixels
    torch.testing.assert_close(pixel_class_loss(probabilities), -each.mean())


def test_pixel_class_loss_is_least_where_all_classes_are_found_for_sure():
    sure = torch.eye(4).reshape(1, 4, 2, 2)
    assert pixel_class_loss(sure).item() == pytest.approx(-math.log(4))
    assert pixel_class_loss(torch.full((1, 4, 2, 2), 0.25)).item() == pytest.approx(0, abs=1e-6)
    assert pixel_class_loss(sure[..., :1, :1].expand(2, 4, 3, 3)).item() == pytest.approx(0, abs=1e-6)  # one class only


def test_pixel_class_loss_has_a_slope_where_a_class_is_out_of_question():
    probabilities = torch.eye(4).reshape(1, 4, 2, 2).requires_grad_()
    pixel_class_loss(probabilities).backward()
    assert probabilities.grad.isfinite().all()

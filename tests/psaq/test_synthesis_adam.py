"""The step that images take, beside torch's own Adam: on the pixels, and on images of several sizes that are summed."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from psaq.synthesis.adam import adam_step
from psaq.synthesis.state import BatchState

SHAPE = (2, 3, 24, 20)


def state(resolutions: int) -> BatchState:
    moments = torch.zeros(resolutions, *SHAPE, dtype=torch.float64)
    pixels = torch.zeros(SHAPE, dtype=torch.float64)
    return BatchState(pixels, torch.zeros(2), moments, moments.clone(), torch.zeros(5, 4), torch.zeros(0))


def stepped(resolutions: int, gradients: list[Tensor]) -> Tensor:
    batch = state(resolutions)
    for gradient in gradients:
        batch.step += 1
        adam_step(batch, gradient, 0.1)
    return batch.pixels


@pytest.fixture
def gradients() -> list[Tensor]:
    return list(torch.randn(4, *SHAPE, dtype=torch.float64))


def test_at_one_resolution_it_is_adam(gradients):
    pixels = torch.zeros(SHAPE, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([pixels], lr=0.1, betas=(0.5, 0.9), eps=1e-8)
    for gradient in gradients:
        pixels.grad = gradient
        optimiser.step()
    torch.testing.assert_close(stepped(1, gradients), pixels.detach())


def test_at_one_resolution_every_rounding_is_where_it_was(gradients):
    """A run that was begun by an earlier version goes on to the same bits: 400 steps enlarge a last bit to an image."""
    batch = state(1)
    for name, tensor in vars(batch).items():
        setattr(batch, name, tensor.float() if isinstance(tensor, Tensor) else tensor)
    mean, square, pixels = torch.zeros(3, *SHAPE).unbind()
    for gradient in (each.float() for each in gradients):
        batch.step += 1
        adam_step(batch, gradient, 0.1)
        mean.lerp_(gradient, 1 - 0.5)
        square.lerp_(gradient.square(), 1 - 0.9)
        root = (square / (1 - 0.9**batch.step)).sqrt_()
        pixels.sub_(0.1 * (mean / (1 - 0.5**batch.step)) / (root + 1e-8))
    assert torch.equal(batch.pixels, pixels)


def test_every_resolution_adds_a_step_of_its_own(gradients):
    """A gradient that is the same everywhere is the same to images of all sizes: they all go its way."""
    even = [torch.full(SHAPE, float(gradient.mean()), dtype=torch.float64) for gradient in gradients]
    torch.testing.assert_close(stepped(6, even), 6 * stepped(1, even))


def test_large_shapes_move_faster_than_what_is_too_fine_for_the_smaller_sizes(gradients):
    checks = torch.ones(SHAPE, dtype=torch.float64)
    checks[..., ::2, 1::2] = checks[..., 1::2, ::2] = -1
    torch.testing.assert_close(stepped(3, [checks]), stepped(1, [checks]), atol=1e-9, rtol=0)
    moved = stepped(5, gradients)
    coarse, alone = (F.adaptive_avg_pool2d(pixels, 4).std() for pixels in (moved, stepped(1, gradients)))
    assert coarse > 2 * alone


def test_more_resolutions_than_an_image_has_are_its_mean(gradients):
    assert stepped(30, gradients).isfinite().all()

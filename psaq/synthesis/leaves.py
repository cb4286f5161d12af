"""Leaves of all sizes that hide one another: where each of them is to be seen."""

import math

import torch
from jaxtyping import Float, Int
from PIL import Image, ImageDraw
from torch import Tensor

LEAVES = 255
"""In an image; with what lies beneath them they are told apart by a byte."""
_SIZES = (0.03, 0.5)
"""Half a leaf's length, the smallest and the largest, as part of the image's longer side."""
_CORNERS = 32
"""Of the polygon that stands for an ellipse."""


def pile(image_size: tuple[int, int], draw: torch.Generator) -> Int[Tensor, "height width"]:
    """Which leaf lies on top, 0 where none does."""
    canvas = Image.new("L", image_size[::-1])
    pencil = ImageDraw.Draw(canvas)
    for number, outline in enumerate(_outlines(image_size, draw).tolist(), 1):
        pencil.polygon([tuple(corner) for corner in outline], fill=number)
    return torch.frombuffer(bytearray(canvas.tobytes()), dtype=torch.uint8).view(image_size).long()


def _outlines(image_size: tuple[int, int], draw: torch.Generator) -> Float[Tensor, "leaves corners 2"]:
    """Ellipses and rectangles, turned at random, in pixels (x, y). Sizes fall with their cube: that is what looks alike
    from near and from afar."""
    height, width = image_size
    places, turns, lengths, breadths, kinds = torch.rand((5, LEAVES, 2), generator=draw).unbind()
    smallest, largest = (size**-2 for size in _SIZES)
    half = max(image_size) * (smallest + lengths[:, :1] * (largest - smallest)) ** -0.5
    angle = torch.arange(_CORNERS) * (2 * math.pi / _CORNERS)
    round_one = torch.stack([angle.cos(), angle.sin()], 1)
    square = round_one / round_one.abs().amax(1, keepdim=True)
    leaf = torch.where(kinds[:, :1, None] < 0.5, square, round_one)
    leaf = leaf * torch.stack([half, half * (0.4 + 0.6 * breadths[:, :1])], 2)
    turn = math.pi * turns[:, 0]
    rows = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], 1).view(-1, 2, 2)
    return leaf @ rows.mT + (places * torch.tensor([width, height]))[:, None]
